import json
import math
from pathlib import Path

import pytest

from recipes_for_tests import coin_questions, command, train, write_recipe
from steadyrl.collapse import RewardSoFar
from steadyrl.measure.glossary import METRICS
from steadyrl.measure.trouble import KINDS, Seen, Watch, fields, look, unreached
from steadyrl.recipe import resolve
from steadyrl.report import page as report
from steadyrl.run.logs import MetricsLog, read_jsonl
from steadyrl.terminal import visible

HEALTHY = {
    "reward/mean": 0.4,
    "reward/min": 0.0,
    "reward/max": 1.0,
    "reward/accuracy": 0.4,
    "reward/failures": 0,
    "reward/uniform_groups": 0.3,
    "response/length": 30.0,
    "response/truncated": 0.05,
    "policy/entropy": 0.2,
    "update/skipped": 0,
}
EQUAL = {"reward/uniform_groups": 1.0}
NOTHING = {"reward/mean": 0.0, "reward/max": 0.0, "reward/accuracy": 0.0} | EQUAL


def names(*rows: dict) -> set[str]:
    """The trouble of the last of some steps."""
    watch = Watch(minibatches=8)
    for step, row in enumerate(rows, start=1):
        found = watch.see({"step": step, **HEALTHY, **row})
    return {trouble.kind.name for trouble in found}


def test_a_healthy_run_has_none() -> None:
    assert names(*[{}] * 50) == set()
    assert names({"reward/uniform_groups": 1.0}, {"reward/uniform_groups": 1.0}) == set()
    assert names(*[{"response/truncated": 0.89}] * 5) == set()


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"response/truncated": 0.9}], {"cut"}),
        ([{"response/truncated": 1.0, "reward/accuracy": 1.0}], {"cut", "cut_and_paid"}),
        ([{"response/truncated": 1.0, "reward/accuracy": 0.5}], {"cut"}),
        ([EQUAL] * 3, {"uniform"}),
        ([EQUAL, EQUAL, {}, EQUAL], set()),
        ([NOTHING] * 3, {"floor", "uniform"}),
        ([NOTHING] * 2, set()),
        ([{}, *[NOTHING] * 3], {"collapse", "uniform"}),
        ([{"reward/accuracy": 1.0, "reward/min": 1.0} | EQUAL] * 3, {"uniform"}),
        ([{"policy/entropy": 9e-4, "response/length": 2000.0}], {"entropy"}),
        ([{"policy/entropy": 0.019, "response/length": 5.0}], {"entropy"}),
        ([{"policy/entropy": 0.0032, "response/length": 230.0}], set()),
        ([{"policy/entropy": 0.0}], {"entropy"}),
        ([*[{"reward/mean": 0.9}] * 4, *[{"reward/mean": 0.59}] * 2], {"collapse"}),
        ([*[{"reward/mean": 0.9}] * 4, *[{"reward/mean": 0.61}] * 2], set()),
        ([*[{"reward/mean": 0.9}] * 4, {"reward/mean": 0.1}], set()),
        ([*[{"reward/mean": 0.9}] * 34, *[{"reward/mean": 0.1}] * 2], set()),
        (
            [*[{"reward/mean": 0.9}] * 4, {"reward/mean": 0.1}, {"reward/mean": None}, {"reward/mean": 0.1}],
            {"collapse"},
        ),
        ([{"reward/failures": 1}], {"failures"}),
        ([{"update/skipped": 2}], {"skipped"}),
    ],
)
def test_each_kind(rows: list[dict], expected: set[str]) -> None:
    assert names(*rows) == expected


def test_a_floor_is_the_lowest_reward_whatever_it_is() -> None:
    fined = {"reward/min": -1.0, "reward/max": -1.0, "reward/mean": -1.0, "reward/accuracy": 0.0}
    assert names(*[fined] * 3) == {"floor"}
    assert names(*[fined] * 3, {**fined, "reward/max": -0.5}) == set()


@pytest.mark.parametrize("missing", [{}, {name: None for name in HEALTHY}])
def test_what_was_not_measured_is_no_trouble(missing: dict) -> None:
    for row in (missing, {"step": 1, **missing}):
        assert look(Seen(reward=RewardSoFar(minibatches=1)), row)[1] == []


def test_numbers_that_are_missing_do_not_stop_a_sentence() -> None:
    watch = Watch(({"step": n, "reward/uniform_groups": 1.0, "reward/mean": None} for n in (1, 2, 3)), minibatches=1)
    assert "mean nan" in watch.found[0].says


def test_says_when_it_began_and_whether_it_is_over() -> None:
    watch = Watch(minibatches=8)
    for step in range(1, 11):
        watch.see({"step": step, **HEALTHY, "response/truncated": 1.0 if 4 <= step <= 7 else 0.0})
    [trouble] = watch.found
    assert (trouble.first, trouble.last, trouble.steps) == (4, 7, 4)
    assert trouble.says == "100% of the responses are cut at the length limit"


def test_a_watch_that_begins_later_finds_the_same() -> None:
    rows = [{"step": n, **HEALTHY, **NOTHING} for n in range(1, 7)]
    straight = [[t.kind.name for t in found] for watch in [Watch(minibatches=8)] for found in map(watch.see, rows)]
    resumed = Watch(rows[:4], minibatches=8)
    assert [[t.kind.name for t in resumed.see(row)] for row in rows[4:]] == straight[4:]


def test_every_kind_has_its_field() -> None:
    assert fields([KINDS[0]]) == {f"trouble/{kind.name}": int(kind is KINDS[0]) for kind in KINDS}
    assert set(fields([])) <= {metric.name for metric in METRICS}
    assert not any(fields([]).values())


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"accuracy": 0.0, "reward": 0.65, "reward_max": 0.9}], "the highest reward is 0.9, the mean 0.65"),
        (
            [{"accuracy": 0.1, "reward": 0.2, "reward_max": 1.0}, {"accuracy": 0.0, "reward": 0.1, "reward_max": 0.5}],
            None,
        ),
        (
            [
                {"accuracy": 1.0, "reward": 1.0, "reward_max": 1.0},
                {"set": "hard", "accuracy": 0.0, "reward": 0.0, "reward_max": 0.0},
            ],
            "hard",
        ),
        ([{"accuracy": 0.0}], None),
        ([{"accuracy": None, "reward": None, "reward_max": None}], None),
        ([], None),
    ],
)
def test_an_evaluation_that_no_reward_can_pass(rows: list[dict], says: str | None) -> None:
    found = unreached(rows, correct_at=1.0)
    assert found is None if says is None else says in (found or "")


def hacked(folder: Path) -> Path:
    """A run as one was measured: right answers from 0.3 to 1, entropy from 1.88 to 0.26, every response cut."""
    recipe = {"steps": 16, "model": {"kind": "tiny"}, "task": {"kind": "chains"}}
    (folder / "recipe.json").write_text(resolve(recipe, source="test").model_dump_json())
    log = MetricsLog(folder / "metrics.jsonl")
    for step in range(1, 17):
        share = 0.3 + 0.7 * (step - 1) / 15
        rewards = {"reward/mean": share, "reward/accuracy": share, "policy/entropy": 1.88 - 1.62 * (step - 1) / 15}
        log.log(step, HEALTHY | rewards | {"response/truncated": 1.0})
    return folder


def test_the_report_names_a_run_that_is_paid_for_cut_responses(tmp_path: Path) -> None:
    page = report.write_report(hacked(tmp_path)).read_text()
    assert "100% of the responses are cut at the length limit, yet 100% are paid in full" in page
    assert "steps 1–16, now" in page
    assert "<b>none</b>" not in page
    assert page.index('role="alert"') < page.index("Held-out accuracy")


def test_the_report_of_a_healthy_run_says_none(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text((hacked(tmp_path) / "recipe.json").read_text())
    (tmp_path / "metrics.jsonl").unlink()
    MetricsLog(tmp_path / "metrics.jsonl").log(1, HEALTHY)
    page = report.write_report(tmp_path).read_text()
    assert "<b>none</b>" in page
    assert 'role="alert"' not in page


ALWAYS = "def reward(prompt, completion):\n    return {value}\n"
FEW = {"rollout": {"prompts": 4, "responses": 2, "max_new_tokens": 4}, "evaluate": {"prompts": 4}, "steps": 4}


def test_a_run_tells_each_kind_once_and_logs_it_at_every_step(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    task = coin_questions(tmp_path, reward=ALWAYS.format(value=1.0))
    letters = "".join(map(chr, range(33, 127)))  # so many that an end is seldom sampled
    few = FEW | {"rollout": FEW["rollout"] | {"max_new_tokens": 1}}
    run = train(tmp_path, task=task, model={"alphabet": letters}, **few)
    lines = capfd.readouterr().err.splitlines()
    assert next(line for line in lines if "of the responses are cut" in line).startswith("steadyrl: step 1: 100%")
    assert len([line for line in lines if "paid in full" in line]) == 1
    assert len([line for line in lines if "have been equal" in line]) == 1
    rows = read_jsonl(run / "metrics.jsonl")
    assert [row["trouble/cut_and_paid"] for row in rows] == [1, 1, 1, 1]
    assert [row["trouble/uniform"] for row in rows] == [0, 0, 1, 1]
    assert [row["trouble/floor"] for row in rows] == [0, 0, 0, 0]


def test_a_run_at_the_floor_is_told_and_a_resumed_one_logs_the_same(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    task = coin_questions(tmp_path, reward=ALWAYS.format(value=-0.5))
    run = train(tmp_path, task=task, checkpoints={"every": 2}, **FEW)
    straight = read_jsonl(run / "metrics.jsonl")
    err = capfd.readouterr().err
    assert "step 3: no reward has ever been above the lowest, -0.5" in err
    assert "the highest reward is -0.5" in err
    command("resume", run, "--checkpoint", "step-000002")
    again = read_jsonl(run / "metrics.jsonl")
    assert [row["trouble/floor"] for row in again] == [row["trouble/floor"] for row in straight] == [0, 0, 1, 1]


def test_a_reason_that_quotes_a_response_cannot_steer_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    right = "def reward(prompt, completion, answer):\n    if completion == answer:\n        return 1.0\n"
    code = right + "    raise ValueError('\\x1b[2J\\r\\u202eanswer\\u200b\\x9b31m')\n"
    recipe = write_recipe(tmp_path, task=coin_questions(tmp_path, reward=code), **FEW)
    assert command("train", recipe, "--run", tmp_path / "run") == 2
    err = capfd.readouterr().err
    assert r"\x1b[2J\x0d\u202eanswer\u200b\x9b31m" in err
    assert not set(err) & set("\x1b\r\u202e\u200b\x9b")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain π and 数 and émoji 🙂", "plain π and 数 and émoji 🙂"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\rb\nc\td", r"a\x0db\x0ac\x09d"),
        ("\x7f\x85\x9b", r"\x7f\x85\x9b"),
        ("\u202e\u2066\u2069\u200f\u061c", r"\u202e\u2066\u2069\u200f\u061c"),
        ("7\u200b\u200d\ufeff\u00ad", r"7\u200b\u200d\ufeff\xad"),
        ("\u2028\u2029", r"\u2028\u2029"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
        ("\u3164\u2800", r"\u3164\u2800"),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
        ("", ""),
    ],
)
def test_what_cannot_be_seen_is_spelled_out(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible(text).isprintable()


def test_line_breaks_stay_where_lines_are_shown() -> None:
    assert visible("a\n\tb\r\x1b", lines=True) == "a\n\tb\\x0d\\x1b"


def test_the_page_marks_what_cannot_be_seen(tmp_path: Path) -> None:
    run = hacked(tmp_path)
    row = {"step": 0, "question": "q\u202e", "answer": "<b>", "completion": "\x1b[31m<i>x</i>\u200b", "reward": 1.0}
    (run / "samples.jsonl").write_text(json.dumps(row) + "\n")
    page = report.write_report(run).read_text()
    assert r'<i class="unseen">\x1b</i>[31m&lt;i&gt;x&lt;/i&gt;<i class="unseen">\u200b</i>' in page
    assert not set(page) & set("\x1b\u202e\u200b")


def test_entropy_of_a_step_that_was_not_finite_is_no_alarm() -> None:
    assert names({"policy/entropy": None}) == set()
    assert names({"policy/entropy": math.nan}) == set()
