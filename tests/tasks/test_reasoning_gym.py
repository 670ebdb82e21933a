import contextlib
import dataclasses
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import sympy
from reasoning_gym.factory import DATASETS

from steadyrl.tasks import gym_table
from steadyrl.tasks.base import TaskError
from steadyrl.tasks.build import build_task
from steadyrl.tasks.gym_audit import all_datasets, measure, planted
from steadyrl.tasks.gym_table import GymTable, table
from steadyrl.tasks.reasoning import HASH_ORDERED, SEVERAL_ANSWERS, UNREPEATABLE, ReasoningGym, extract_answer


def gym(dataset: str = "chain_sum", *, seed: int = 0, min_reward: float = 1.0, **parameters: object) -> ReasoningGym:
    return ReasoningGym(seed=seed, dataset=dataset, parameters=parameters, min_reward=min_reward)


@pytest.mark.parametrize("dataset", ["chain_sum", "letter_counting", "simple_equations"])
def test_the_reference_answer_is_right_and_another_is_not(dataset: str) -> None:
    task = gym(dataset)
    for index in (0, 1, 70, 10**9):
        example = task.example("train", index)
        assert task.reward("train", index, f"Well. <answer>{example.answer}</answer>") == 1.0
        assert task.reward("train", index, example.solution) == 1.0
        assert task.reward("train", index, f"<answer>{example.answer}1</answer>") == 0.0
        assert task.reward("train", index, "") == 0.0


def test_splits_are_disjoint_and_problems_pure() -> None:
    few = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    task, again = gym(**few), gym(**few)
    train = [task.example("train", index) for index in range(400)]
    held_out = [task.example("held_out", index) for index in range(200)]
    assert not {example.question for example in train} & {example.question for example in held_out}
    assert [again.example("train", index) for index in reversed(range(400))] == train[::-1]
    assert len({example.question for example in train}) > 100  # of 200, a quarter of them held out
    assert gym(seed=1, **few).example("train", 0) != train[0]


def test_parameters_reach_the_dataset() -> None:
    question = gym(min_terms=5, max_terms=5, min_digits=1, max_digits=1).example("train", 0).question
    expression = question.partition(":")[2]
    assert sum(character.isdigit() for character in expression) == 5


def test_min_reward_decides_about_partial_credit() -> None:
    # chain_sum's verifier gives the whole point or 0.01; spell_backward rewards a part of the letters
    lenient, strict = gym("spell_backward", min_reward=0.3), gym("spell_backward")
    answer = lenient.example("train", 0).answer
    nearly = answer[:-1] + "?"
    assert 0.3 <= lenient._verifier.score_answer(nearly, lenient._entry("train", 0)) < 1.0
    assert (lenient.reward("train", 0, nearly), strict.reward("train", 0, nearly)) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("dataset", "answer"),
    [
        ("prime_factorization", "two times three"),
        ("boxnet", '[{"0": "x"}]'),
        ("boxnet", "3"),
        ("game_of_life", "{}"),
        ("game_of_life", "[" * 100_000),
        ("survo", "a b\nc"),
        ("modulo_grid", "\ud800"),
        ("prime_factorization", "9" * 10_000),
        ("gsm_symbolic", "9" * 400),
        ("power_function", "1e999999999"),
        ("fraction_simplification", "1/0"),
        ("decimal_arithmetic", "sNaN"),
        ("quantum_lock", "A" * 10_000),
        ("rush_hour", "Z+9"),
    ],
)
def test_an_answer_that_cannot_be_read_is_wrong(dataset: str, answer: str) -> None:
    """It is worth 0 and not a missing reward, whatever the verifier raises."""
    assert gym(dataset).reward("train", 0, answer) == 0.0


class _Raising:
    def score_answer(self, answer: str, entry: dict) -> float:
        raise {"recursion": RecursionError, "memory": MemoryError, "syntax": SyntaxError, "any": Exception}[answer]


@pytest.mark.parametrize("error", ["recursion", "memory", "syntax", "any"])
def test_whatever_a_verifier_raises_is_worth_nothing(error: str) -> None:
    task = gym("chain_sum")
    task._verifier = _Raising()  # type: ignore[assignment]
    assert task.reward("train", 0, error) == 0.0


def test_a_missing_reference_answer_is_empty() -> None:
    assert gym("graph_color").example("train", 0).answer == ""


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (" 42\n", "42"),
        ("<answer>1</answer> no: <answer> 2 </answer>.", "2"),
        ("<answer>3", "<answer>3"),
        ("<think><answer></think><answer>4</answer>", "4"),
    ],
)
def test_extract_answer(completion: str, answer: str) -> None:
    assert extract_answer(completion) == answer


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(TaskError, match="reasoning-gym dataset `chain_sun` is unknown; did you mean `chain_sum`"):
        gym("chain_sun")
    with pytest.raises(TaskError, match=r"parameter of reasoning-gym's chain_sum `min_term` .* `min_terms`"):
        gym(min_term=2)
    with pytest.raises(TaskError, match="`seed` is unknown"):
        ReasoningGym(seed=0, dataset="chain_sum", parameters={"seed": 1}, min_reward=1.0)


def test_values_the_dataset_refuses() -> None:
    with pytest.raises(TaskError, match=r"chain_sum refuses parameters = .*'min_terms': 0.*must be positive"):
        gym(min_terms=0)


def test_too_few_problems_end_in_an_error() -> None:
    task = gym("chain_sum")
    task._generator = lambda split, block, round_: _Constant()  # type: ignore[assignment]
    with pytest.raises(TaskError, match=r"chain_sum gave no .* problem 0 in 1000 draws.*too few problems"):
        [task.example(split, 0) for split in ("train", "held_out")]


class _Constant:
    seed = 0

    def __getitem__(self, index: int) -> dict:
        return {"question": "always the same", "answer": "1"}


def test_the_global_random_state_is_left_alone() -> None:
    random.seed(5)
    before = random.getstate()
    gym("list_functions").example("train", 0)
    assert random.getstate() == before


def test_hash_ordered_datasets_need_a_fixed_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(TaskError, match=r"word_ladder .* PYTHONHASHSEED=0"):
        gym("word_ladder")
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert gym("ransom_note").example("train", 0).question


@pytest.mark.parametrize("dataset", UNREPEATABLE)
def test_unrepeatable_datasets_are_refused(dataset: str) -> None:
    with pytest.raises(TaskError, match=f"reasoning-gym's {dataset} .*use another dataset"):
        gym(dataset)


def test_right_responses_are_paid_with_and_without_tags() -> None:
    task = gym("chain_sum")
    right = task.right_responses("train", 5)
    assert [name for name, _ in right.forms] == ["bare", "tag", "tag after thoughts"]
    assert all(task.reward("train", 5, response) == 1.0 for _, response in right.forms)
    assert right.only
    assert gym("graph_color").right_responses("train", 0).forms == ()
    assert not gym("jugs").right_responses("train", 0).only


def test_names_of_datasets_with_several_answers_exist() -> None:
    assert set(DATASETS) >= SEVERAL_ANSWERS


RUNNERS = {
    "binary_matrix",
    "countdown",
    "intermediate_integration",
    "n_queens",
    "polynomial_multiplication",
    "puzzle24",
    "simple_integration",
    "spiral_matrix",
    "string_insertion",
}


@pytest.mark.parametrize("dataset", sorted(RUNNERS))
def test_a_verifier_that_runs_code_needs_leave(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    with pytest.raises(
        TaskError, match=f"task.dataset = '{dataset}': its verifier runs Python code .*allow_code = true"
    ):
        gym(dataset)
    task = ReasoningGym(seed=0, dataset=dataset, parameters={}, min_reward=1.0, allow_code=True)
    assert task.reward("train", 0, task.example("train", 0).answer) == 1.0


def test_the_recipe_gives_that_leave() -> None:
    section = {"dataset": "countdown"}
    with pytest.raises(TaskError, match="allow_code"):
        build_task("reasoning_gym", seed=0, parameters=section)
    assert build_task("reasoning_gym", seed=0, parameters=section | {"allow_code": True}).example("train", 0).question


@pytest.mark.parametrize("dataset", ["game_of_life_halting", "coin_flip", "complex_arithmetic"])
def test_a_verifier_that_pays_junk_in_full_is_refused(dataset: str) -> None:
    with pytest.raises(TaskError, match=f"task.dataset = '{dataset}': its verifier gives 1 for junk .*another dataset"):
        gym(dataset)


def test_min_reward_must_lie_above_what_junk_earns() -> None:
    with pytest.raises(
        TaskError, match=r"gives 0\.05 for junk .*min_reward = 0\.05 .*raise task\.min_reward above 0\.05"
    ):
        gym("arc_agi", min_reward=0.05)
    assert gym("arc_agi", min_reward=0.06)
    with pytest.raises(TaskError, match=r"min_reward = 0 would pay"):
        gym("ab", min_reward=0.0)


def test_a_dataset_that_nobody_looked_at_needs_leave_too(monkeypatch: pytest.MonkeyPatch) -> None:
    known = table()
    fewer = {name: verdict for name, verdict in known.datasets.items() if name != "chain_sum"}
    monkeypatch.setattr(gym_table, "table", lambda: dataclasses.replace(known, datasets=fewer))
    with pytest.raises(TaskError, match=r"'chain_sum': it is not known whether .*reasoning-gym .*allow_code = true"):
        gym("chain_sum")
    assert ReasoningGym(seed=0, dataset="chain_sum", parameters={}, min_reward=1.0, allow_code=True)


def test_another_version_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    known = table()
    assert gym_table.other_version() is None
    monkeypatch.setattr(gym_table, "table", lambda: dataclasses.replace(known, version="0.0.1"))
    assert "audited in version 0.0.1" in str(gym_table.other_version())


def test_the_table_has_every_dataset_and_what_was_found() -> None:
    known = table().datasets
    assert set(known) == set(DATASETS) - UNREPEATABLE.keys()
    assert {name for name, verdict in known.items() if verdict.code} == RUNNERS
    assert not [name for name, verdict in known.items() if verdict.own == "unpaid"]
    assert {name for name, verdict in known.items() if verdict.own in ("untested", "example paid")} == {
        "boxnet",
        "graph_color",
        "propositional_logic",
        "rubiks_cube",
        "rush_hour",
    }


def test_the_page_shows_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs/verifiers.md").read_text(encoding="utf-8")
    assert gym_table.markdown(table()) in page
    assert f"reasoning-gym {table().version}" in page


def test_some_datasets_measured_again() -> None:
    names = ["ab", "chain_sum", "coin_flip", "complex_arithmetic", "countdown", "game_of_life_halting", "graph_color"]
    assert_as_shipped(measure([*names, "n_queens", "string_insertion", "time_intervals"]))


@pytest.mark.slow
def test_every_dataset_measured_again() -> None:
    """No dataset beyond the known ones pays junk in full or runs code that a response holds."""
    fresh = measure(all_datasets())
    assert_as_shipped(fresh)
    assert len(fresh.datasets) == len(DATASETS) - len(UNREPEATABLE)


def assert_as_shipped(fresh: GymTable) -> None:
    assert fresh.version == table().version, "measure again: python -m steadyrl.tasks.gym_audit"
    assert {name: table().datasets[name] for name in fresh.datasets} == fresh.datasets


def test_planted_code_runs_where_it_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers that are planted are code: `eval`, `exec`, sympy and a shell each run one of them."""
    monkeypatch.chdir(tmp_path)
    runs = {
        "eval": lambda text: eval(text),
        "exec": lambda text: exec(text, {}),
        "list": lambda text: eval(f"[{text}]"),
        "string": lambda text: eval(f"'{text}'"),
        "sympy": sympy.parse_expr,
        "shell": lambda text: subprocess.run(["sh", "-c", f"echo {text}"], capture_output=True, check=True),
    }
    for name, run in runs.items():
        for text in planted("42", name):
            with contextlib.suppress(Exception):
                run(text)
        assert (tmp_path / name).exists(), name


DRAW_SOME = """
import hashlib, json, math, sys, time
from steadyrl.tasks.reasoning import ReasoningGym
found = {}
for name in sys.argv[1:]:
    task = ReasoningGym(seed=0, dataset=name, parameters={}, min_reward=math.inf, allow_code=True)
    found[name] = []
    began = time.monotonic()
    while len(found[name]) < 24 and time.monotonic() < began + 1:
        example = task.example("train", len(found[name]))
        found[name].append(hashlib.sha256(repr(example).encode()).hexdigest())
print("\\n" + json.dumps(found))
"""


@pytest.mark.slow
def test_every_other_dataset_is_the_same_in_every_process() -> None:
    """A worker verifies responses to problems that another process drew: both must see the same ones."""
    names = sorted(set(DATASETS) - HASH_ORDERED - UNREPEATABLE.keys())
    first, second = (_draw_in_a_process(names, hash_seed) for hash_seed in ("1", "2"))
    # both stop a slow dataset after a second, maybe not at the same problem
    differ = [name for name in names if any(a != b for a, b in zip(first[name], second[name], strict=False))]
    assert differ == []


def _draw_in_a_process(names: list[str], hash_seed: str) -> dict[str, list[str]]:
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    program = [sys.executable, "-c", DRAW_SOME, *names]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])
