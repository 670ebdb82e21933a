import json
import math
import random
from itertools import combinations
from pathlib import Path

import pytest
import torch

from recipes_for_tests import coin_questions, command, train, tree, write_recipe
from steadyrl.config import RecipeError, resolve
from steadyrl.engine.local import LocalEngine
from steadyrl.estimates import Estimate, accuracy, ballot, maj_at, mean_reward, pass_at, sizes, student
from steadyrl.jsonl import read_jsonl
from steadyrl.order import seed_of
from steadyrl.tasks.base import TaskError
from steadyrl.tasks.chains import Chains
from steadyrl.tasks.questions import Questions
from steadyrl.tasks.rows import Rows

Z = 1.959964


def wilson(right: int, n: int) -> tuple[float, float]:
    """The textbook's form: the p with |p̂ − p| = z √(p(1−p)/n), from the quadratic (1+z²/n)p² − (2p̂+z²/n)p + p̂² = 0."""
    share = right / n
    a, b, c = 1 + Z**2 / n, -(2 * share + Z**2 / n), share**2
    root = math.sqrt(max(0.0, b * b - 4 * a * c))
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


def single(right: int, n: int) -> Estimate:
    return accuracy((torch.arange(n) < right).float()[:, None])


def width(found: Estimate) -> float:
    return found.high - found.low


def test_one_sample_of_ten_prompts_by_hand():
    found = single(3, 10)
    n = 10 - 1  # p(1−p)/s² with s² = p(1−p)/(n−1), the unbiased variance of the mean
    low, high = wilson_share(0.3, n)
    assert found.value == pytest.approx(0.3)
    assert (found.low, found.high) == pytest.approx((low, high))


def wilson_share(share: float, n: float) -> tuple[float, float]:
    """By hand for a share that need not be a whole count."""
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n * n)) / (1 + Z**2 / n)
    return centre - half, centre + half


@pytest.mark.parametrize(("right", "n"), [(30, 100), (1, 200), (128, 256), (499, 512)])
def test_one_sample_a_prompt_is_wilsons_interval(right, n):
    found = single(right, n)
    assert found.value == pytest.approx(right / n)
    assert (found.low, found.high) == pytest.approx(wilson(right, n), abs=1.0 / n**1.5)


def test_samples_that_agree_within_a_prompt_add_nothing():
    one = single(30, 100)
    same = accuracy((torch.arange(100) < 30).float()[:, None].expand(100, 8))
    assert (same.value, same.low, same.high) == pytest.approx((one.value, one.low, one.high))


def test_there_are_no_more_samples_than_were_drawn():
    means = torch.tensor([[1.0] * 50 + [0.0] * 50, [1.0] * 51 + [0.0] * 49])  # p(1−p)/s² would be 10,000
    found = accuracy(means)
    assert found.high - found.low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 200), rel=0.02)


def test_independent_samples_narrow_and_clustered_ones_widen_the_interval():
    draw = torch.Generator().manual_seed(0)
    independent = accuracy((torch.rand(100, 8, generator=draw) < 0.3).float())
    clustered = accuracy((torch.rand(100, 1, generator=draw) < 0.3).float().expand(100, 8))
    assert width(independent) < 0.55 * width(single(30, 100))
    assert width(clustered) > 1.8 * width(independent)


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("prompts", [1, 2, 50])
@pytest.mark.parametrize("right", [0.0, 1.0])
def test_all_right_and_all_wrong_are_defined(prompts, samples, right):
    found = accuracy(torch.full((prompts, samples), right))
    assert found.value == right
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0
    assert width(found) == pytest.approx(Z**2 / (prompts + Z**2))  # Wilson's at 0 and at 1, with n prompts


@pytest.mark.parametrize("correct", [[[1.0, 0.0]], [[1.0], [0.0]], [[1.0, 0.0], [1.0, 0.0]], [[1.0, 1.0], [0.0, 1.0]]])
def test_the_interval_holds_the_value_and_stays_within_0_and_1(correct):
    found = accuracy(torch.tensor(correct))
    assert 0.0 <= found.low < found.value < found.high <= 1.0


@pytest.mark.parametrize(
    ("prompts", "samples", "spread"),
    [(100, 1, 0.0), (256, 1, 0.0), (60, 8, 0.0), (100, 8, 0.2), (100, 8, 0.3)],
)
def test_the_interval_covers_the_truth_in_about_95_of_100_draws(prompts, samples, spread):
    """Mean accuracy 0.3, spread over prompts: half of them at 0.3 − spread, half at 0.3 + spread, drawn anew."""
    draw = random.Random(7)
    torch.manual_seed(7)
    covered, repeats = 0, 1000
    for _ in range(repeats):
        chance = torch.tensor([[0.3 + draw.choice((-spread, spread))] for _ in range(prompts)])
        found = accuracy((torch.rand(prompts, samples) < chance).float())
        covered += found.low <= 0.3 <= found.high
    assert 0.92 <= covered / repeats <= 0.98


@pytest.mark.parametrize("chance", [0.02, 0.97])
def test_the_interval_covers_near_the_ends_too(chance):
    torch.manual_seed(1)
    covered = 0
    for _ in range(1000):
        found = accuracy((torch.rand(64, 1) < chance).float())
        covered += found.low <= chance <= found.high
    assert covered / 1000 >= 0.92


# ---- missing rewards, and rewards between 0 and 1


def test_a_missing_reward_counts_in_no_denominator() -> None:
    correct = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    known = torch.tensor([[True, True], [True, False], [False, False]])
    found = accuracy(correct, known)
    assert found.value == 0.75  # of (1 + 0)/2 and 1/1; the third prompt has no reward
    assert (found.low, found.high) == pytest.approx(wilson_share(0.75, 3.0))  # p(1−p)/s² = 3 = the rewards there are


def test_nothing_known_is_not_a_number() -> None:
    nothing = torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool)
    for found in (accuracy(*nothing), mean_reward(*nothing)):
        assert math.isnan(found.value)
        assert math.isnan(found.low)


@pytest.mark.parametrize("samples", [1, 3, 7])
def test_all_known_is_the_same_to_the_last_bit(samples: int) -> None:
    correct = (torch.rand(97, samples, generator=torch.Generator().manual_seed(samples)) < 0.4).float()
    assert accuracy(correct, torch.ones_like(correct, dtype=torch.bool)) == accuracy(correct)


def test_mean_reward_by_hand() -> None:
    found = mean_reward(torch.tensor([[0.25, 0.75], [0.5, 1.0], [0.0, 0.5]]))
    half = 4.3027 * 0.25 / math.sqrt(3)  # the prompts' means are 0.5, 0.75 and 0.25; t for 2 degrees of freedom
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half), rel=1e-4)
    missing = mean_reward(torch.tensor([[0.5, -9.0], [0.25, 0.25]]), torch.tensor([[True, False], [True, True]]))
    assert missing.value == 0.375


def test_rewards_of_0_and_1_have_the_interval_of_the_accuracy() -> None:
    correct = (torch.arange(40) < 13).float()[:, None]
    assert mean_reward(correct) == accuracy(correct)


def test_one_prompt_has_no_interval() -> None:
    found = mean_reward(torch.tensor([[0.5, 0.25]]))
    assert found.value == 0.375
    assert math.isnan(found.low)


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (29, 2.04523), (255, 1.96935)],
)
def test_students_quantile_agrees_with_the_table(freedom: int, quantile: float) -> None:
    assert student(freedom) == pytest.approx(quantile, rel=2e-3)


# ---- pass@k and maj@k


def test_which_k() -> None:
    assert [sizes(n) for n in (1, 2, 3, 4, 6, 8)] == [[], [2], [2, 3], [2, 4], [2, 4, 6], [2, 4, 8]]


@pytest.mark.parametrize(
    ("k", "correct", "chance"),
    [
        (1, [[True, False, False, False]], 1 / 4),
        (2, [[True, False, False, False]], 1 / 2),  # 1 − C(3,2)/C(4,2) = 1 − 3/6
        (4, [[True, False, False, False]], 1.0),
        (2, [[False] * 4], 0.0),
        (2, [[True, True, True, False]], 1.0),  # fewer wrong ones than k
        (2, [[True, False], [False, False], [True, False, False]], (1 + 0 + 2 / 3) / 3),
        (3, [[True, False], [True, False, False]], 1.0),  # the first prompt has too few
        (3, [[True, False]], None),
        (1, [], None),
    ],
)
def test_pass_by_hand(k: int, correct: list, chance: float | None) -> None:
    assert pass_at(k, correct) == (None if chance is None else pytest.approx(chance))


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_is_the_share_of_subsets_with_a_right_one(k: int) -> None:
    correct = [True, False, True, False, False, False]
    subsets = list(combinations(correct, k))
    assert pass_at(k, [correct]) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize(
    ("k", "answers", "correct", "share"),
    [
        (4, ["7", "7", "3", "4"], [True, True, False, False], 1.0),
        (4, ["7", "3", "3", "4"], [True, False, False, False], 0.0),
        (4, ["7", "7", "3", "3"], [True, True, False, False], 0.5),  # a tie: half of the draws are right
        (3, ["7", "3", "4"], [True, False, False], 1 / 3),
        (2, ["7", "3", "3", "3"], [True, False, False, False], 0.25),  # blocks (7, 3) and (3, 3)
        (2, ["7", "7", "3"], [True, True, False], 1.0),  # the rest is left out
        (4, ["7", None, None, None], [True, False, False, False], 1.0),  # no answer, no vote
        (2, [None, None, "7", "7"], [False, False, True, True], 0.5),
        (4, ["7", " 7. ", "$7$", "7.0"], [True, True, True, False], 0.75),  # one answer, right in 3 of 4
        (2, [None, None], [False, False], None),
        (4, ["7", "7"], [True, True], None),
    ],
)
def test_majority_by_hand(k: int, answers: list, correct: list, share: float | None) -> None:
    assert maj_at(k, [answers], [correct]) == (None if share is None else pytest.approx(share))


@pytest.mark.parametrize(
    ("one", "other"),
    [("1,000", "1000"), ("16", "16.00"), (" Paris.", "paris"), ("１６", "16"), ("-0", "0"), ("+5", "5"), ("007", "7")],
)
def test_the_same_answer_written_otherwise(one: str, other: str) -> None:
    assert ballot(one) == ballot(other)


@pytest.mark.parametrize(("one", "other"), [("1,00", "100"), ("-5", "5"), ("1.5", "15"), ("x-1", "x 1"), ("10", "1")])
def test_other_answers_stay_apart(one: str, other: str) -> None:
    assert ballot(one) != ballot(other)


def test_what_a_response_answers() -> None:
    chains = Chains(seed=0, min_terms=2, max_terms=2, teacher_noise=0.0)
    assert [chains.final_answer(text) for text in ("1+2=3;>3", "1+2=3;", "")] == ["3", None, None]
    rows = Rows(seed=0, width=3, min_rows=1, max_rows=2, teacher_noise=0.0)
    assert rows.final_answer("b+136a+140") == "a+140"


# ---- a run


PARTIAL = "def reward(prompt, completion):\n    return 0.9 if sum(map(ord, completion)) % 2 else 0.4\n"
SMALL = {"rollout": {"prompts": 4, "responses": 2, "max_new_tokens": 6}, "steps": 1}


def test_partial_credit_is_told_beside_an_accuracy_of_0(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    evaluate = {"prompts": 8, "samples": 4}
    run = train(tmp_path, task=coin_questions(tmp_path, reward=PARTIAL), evaluate=evaluate, **SMALL)
    out, err = capfd.readouterr()
    for row in read_jsonl(run / "eval.jsonl"):
        assert row["accuracy"] == row.get("pass@2", 0.0) == row.get("maj@4", 0.0) == 0.0
        assert row["reward_low"] <= row["reward"] <= row["reward_high"]
        assert 0.4 <= row["reward"] <= row["reward_max"]
        assert ("pass@4" in row) == (row["mode"] == "sampled")
    assert err.count("no response to the held_out problems has a reward of at least task.correct_at = 1") == 1
    assert "reward 0." in out
    assert command("eval", run) == 0
    assert "pass@4 0.000" in capfd.readouterr().out


def test_what_is_right_is_the_recipes(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    evaluate = {"prompts": 8, "samples": 4}
    run = train(tmp_path, task=coin_questions(tmp_path, reward=PARTIAL, correct_at=0.9), evaluate=evaluate, **SMALL)
    first = read_jsonl(run / "eval.jsonl")[0]
    assert first["reward"] == pytest.approx(0.4 + 0.5 * first["accuracy"])
    assert first["accuracy"] <= first["pass@2"] <= first["pass@4"] <= 1.0
    assert "no response" not in capfd.readouterr().err


def further(folder: Path, count: int, *, first: int = 100) -> dict:
    path = folder / "further.jsonl"
    rows = [{"ask": f"{n}+1=", "answer": str(n)} for n in range(first, first + count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"name": "hard", "path": str(path), "question_column": "ask"}


def test_further_sets_are_evaluated_beside_the_held_out_one(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    task, alone = coin_questions(tmp_path), {"prompts": 8}
    both = alone | {"sets": [further(tmp_path, 5)]}
    run = train(tmp_path, "both", task=task, evaluate=both, **SMALL)
    rows = read_jsonl(run / "eval.jsonl")
    assert [(row["set"], row["prompts"]) for row in rows if row["step"] == 0] == [("held_out", 8), ("hard", 5)] * 4
    assert " hard 0." in capfd.readouterr().out
    plain = read_jsonl(train(tmp_path, "alone", task=task, evaluate=alone, **SMALL) / "eval.jsonl")
    assert [row for row in rows if row["set"] == "held_out"] == plain
    fewer = both["sets"][0] | {"prompts": 2}
    run = train(tmp_path, "fewer", task=task, evaluate=alone | {"sets": [fewer]}, report=True, **SMALL)
    assert {row["prompts"] for row in read_jsonl(run / "eval.jsonl") if row["set"] == "hard"} == {2}
    assert "sampled, fp8, hard" in (run / "report.html").read_text()


def test_a_question_of_a_further_set_is_not_trained_on(tmp_path: Path) -> None:
    fields = {"path": coin_questions(tmp_path)["path"], "held_out": 16}
    plain = Questions(**fields)
    asked = [plain.example("train", index).question for index in range(3)]
    path = tmp_path / "shared.jsonl"
    path.write_text("".join(json.dumps({"question": text, "answer": "1"}) + "\n" for text in asked))
    columns = {"question_column": "question", "answer_column": "answer"}
    other = {"name": "shared", "path": str(path), "subset": None, "split": "train", **columns}
    both = Questions(**fields, sets=[other])
    assert [both.example("shared", index).question for index in range(3)] == asked
    assert both.size("train") == 48 - 3
    assert not {both.example("train", index).question for index in range(45)} & set(asked)
    everything = Path(fields["path"]).read_text()
    path.write_text(everything)
    with pytest.raises(TaskError, match="none is left"):
        Questions(**fields, sets=[other])


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([{"name": "train", "path": "x.jsonl"}], "name = 'train' is reserved for the task's own problems"),
        ([{"name": "a", "path": "x"}, {"name": "a", "path": "y"}], "the name 'a' occurs twice"),
        ([{"name": "a b", "path": "x"}], "String should match pattern"),
        ([{"path": "x"}], "Field required"),
    ],
)
def test_sets_that_cannot_be_told_apart_are_refused(tmp_path: Path, sets: list, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        resolve(tree(task=coin_questions(tmp_path), evaluate={"sets": sets}), source="test")


def test_sets_are_for_questions_only() -> None:
    with pytest.raises(RecipeError, match=r'only task.kind = "questions" can verify; the task is "chains"'):
        resolve(tree(evaluate={"sets": [{"name": "a", "path": "x.jsonl"}]}), source="test")


def test_a_set_that_has_too_few_problems_is_refused_by_name(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    sets = [further(tmp_path, 3) | {"prompts": 4}]
    recipe = write_recipe(tmp_path, task=coin_questions(tmp_path), evaluate={"prompts": 8, "sets": sets})
    assert command("train", recipe, "--dry-run") == 2
    told = capfd.readouterr().err
    assert "evaluate.sets, hard: prompts = 4, but the task has 3 hard problem(s). Use at most 3" in told


def test_evaluations_share_their_random_numbers_with_each_other_and_with_no_rollout(tmp_path, monkeypatch) -> None:
    seen: list[tuple[str, int]] = []
    submit = LocalEngine.submit

    def note(self, requests):
        seen.extend(("rollout" if request.responses == 4 else "evaluation", request.seed) for request in requests)
        submit(self, requests)

    monkeypatch.setattr(LocalEngine, "submit", note)
    train(tmp_path, task=coin_questions(tmp_path), steps=2, evaluate={"every": 1, "prompts": 4}, seed=7)
    asked = {kind: {seed for one, seed in seen if one == kind} for kind in ("rollout", "evaluation")}
    assert asked["evaluation"] == {seed_of(7, "evaluate")}
    assert asked["rollout"] == {seed_of(7, "rollout/1"), seed_of(7, "rollout/2")}
