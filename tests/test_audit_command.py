import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes_for_tests import coin_questions, command, comparable, train, write_recipe
from steadyrl.audit import at_start, digest, shown
from steadyrl.recipe import Recipe, load
from steadyrl.tasks.build import build_task
from steadyrl.tasks.pool import RewardPool

ROOT = Path(__file__).parents[1]
EXACT = "def reward(prompt, completion, answer):\n    return float(completion.strip() == answer)\n"
TRUSTING = "def reward(prompt, completion):\n    return float(len(completion) > 0)\n"
COUNTING = """
import pathlib
calls = []
log = pathlib.Path(__file__).with_name("calls")

def reward(prompt, completion, answer):
    calls.append(completion)
    log.open("a").write("x")
    return float(len(calls) % 2)
"""


class Words:
    """A tokenizer, as far as the digest reads one."""

    def __init__(self, *words: str, template: str | None = None) -> None:
        self.words, self.chat_template = words, template

    def get_vocab(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that nothing was written to."""
    monkeypatch.setenv("STEADYRL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "audit"


def with_reward(folder: Path, code: str, **changes: Any) -> Path:
    return write_recipe(folder, task=coin_questions(folder, reward=code), model=ENOUGH, **changes)


ENOUGH = {"alphabet": "0123456789+=-"}


@pytest.mark.parametrize("name", ["demo", "demo-vllm", "jsonl", "own-model", "reasoning-gym", "smoke"])
def test_every_shipped_recipe_passes(name: str) -> None:
    assert command("audit", name) == 0


def test_a_task_with_an_evaluation_set_is_audited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exam = tmp_path / "exam.jsonl"
    exam.write_text('{"question": "1+1=", "answer": "2"}\n')
    sets = [{"name": "exam", "path": str(exam)}]
    assert command("audit", with_reward(tmp_path, EXACT, evaluate={"sets": sets})) == 0
    assert "paid junk: 0" in capsys.readouterr().out


def test_paid_junk_is_shown_and_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("audit", with_reward(tmp_path, TRUSTING)) == 1
    printed = capsys.readouterr().out
    assert "junk, refusal: to `" in printed
    assert "the response `I do not know.` earned 1" in printed
    assert "unpaid right responses: 0" in printed


def test_json_holds_the_counts_and_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("audit", with_reward(tmp_path, TRUSTING), "--json") == 1
    report = json.loads(capsys.readouterr().out)
    rows = {row["form"]: row for row in report["rows"]}
    assert (rows["refusal"]["counts"], rows["refusal"]["example"]["response"]) == (32, "I do not know.")
    assert report["paid_junk"] == sum(row["counts"] for row in report["rows"] if row["half"] == "junk") > 32
    assert (report["unpaid_right"], report["problems"], report["complete"]) == (0, 32, True)


def test_a_function_that_pays_no_right_response(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = "def reward(prompt, completion):\n    return 0.0\n"
    assert command("audit", with_reward(tmp_path, nothing)) == 1
    printed = capsys.readouterr().out
    assert "paid junk: 0, unpaid right responses: 32" in printed
    assert "No reward reached task.correct_at; the highest was 0" in printed


def test_a_function_that_wants_tags_passes(tmp_path: Path) -> None:
    tags = (
        "def reward(prompt, completion, answer):\n    return float(f'<answer>{answer}</answer>' in completion[-40:])\n"
    )
    assert command("audit", with_reward(tmp_path, tags)) == 0


def test_strict_counts_partial_credit(tmp_path: Path) -> None:
    partial = EXACT.replace("return ", "return 0.1 * ('know' in completion) + ")
    recipe = with_reward(tmp_path, partial)
    assert command("audit", recipe) == 0
    assert command("audit", recipe, "--strict") == 1
    assert command("audit", with_reward(tmp_path, EXACT), "--strict") == 0


def test_fields_of_the_recipe_can_be_changed(tmp_path: Path) -> None:
    recipe = with_reward(tmp_path, EXACT.replace("return ", "return 0.5 * "))
    assert command("audit", recipe) == 1
    assert command("audit", recipe, "--task.correct_at", "0.5") == 0


def test_a_recipe_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("audit", tmp_path / "none.toml") == 2
    assert "cannot read the recipe" in capsys.readouterr().err


def test_a_response_cannot_write_to_the_terminal() -> None:
    assert shown("a\x1b[2J\r\n\u202eb\x9b") == "`a\\x1b[2J\\r\\n\\u202eb\\x9b`"
    assert shown("\\frac{1}{2} é") == "`\\frac{1}{2} é`"
    assert len(shown("x" * 1000)) < 80


def test_a_question_is_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = with_reward(tmp_path, TRUSTING)
    pairs = [{"question": f"[bold]{i}[/bold] \x1b]0;x\x07 [/x]", "answer": str(i)} for i in range(40)]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    assert command("audit", recipe) == 1
    printed = capsys.readouterr().out
    assert "[bold]" in printed
    assert "\x1b]0" not in printed


def test_a_run_begins_with_a_warning_where_junk_is_paid(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = coin_questions(tmp_path, reward=TRUSTING)
    train(tmp_path, task=task, steps=1)
    assert "steadyrl: the verifier pays for junk: " in capsys.readouterr().err
    train(tmp_path, "again", task=task, steps=1)
    assert "steadyrl: the verifier pays for junk: " in capsys.readouterr().err  # from the cache
    train(tmp_path, "off", task=task, steps=1, verifier={"audit": False})
    assert "verifier" not in capsys.readouterr().err
    train(tmp_path, "chains", steps=1)
    assert "verifier" not in capsys.readouterr().err


def test_the_audit_changes_no_number_of_the_run(tmp_path: Path, cache: Path) -> None:
    """Not even where the reward function remembers how often it was called."""
    task = coin_questions(tmp_path, reward=COUNTING)
    audited = train(tmp_path, "audited", task=task, steps=2)
    remembered = train(tmp_path, "remembered", task=task, steps=2)
    off = train(tmp_path, "off", task=task, steps=2, verifier={"audit": False})
    assert comparable(audited) == comparable(remembered) == comparable(off)


Audit = Callable[..., tuple[list[str], int]]


@pytest.fixture
def audit_counting(tmp_path: Path, cache: Path) -> Audit:
    """Audits the counting function at the start of a run; the warnings, and how many responses were verified."""

    def audit(tokenizer: Words | None = None, **changes: Any) -> tuple[list[str], int]:
        calls = tmp_path / "calls"
        recipe = load(write_recipe(tmp_path, **{"task": coin, **changes}))
        task = build_task(recipe.task.kind, seed=recipe.seed, parameters=recipe.task.model_dump())
        with RewardPool(recipe.task.model_dump(), seed=0, workers=1, time_limit=10) as pool:
            calls.unlink(missing_ok=True)  # those that tried the function
            found = at_start(recipe, task, pool, tokenizer or Words("a", "b"))
        return found, calls.stat().st_size if calls.exists() else 0

    coin = coin_questions(tmp_path, reward=COUNTING)
    return audit


def test_an_audit_is_made_once(audit_counting: Audit) -> None:
    first, calls = audit_counting()
    assert calls > 16 * 10
    assert first
    assert audit_counting() == (first, 0)
    assert audit_counting(optimizer={"learning_rate": 1.0}) == (first, 0)
    assert audit_counting(verifier={"audit": False}) == ([], 0)


def test_an_audit_is_made_again_where_its_grounds_changed(audit_counting: Audit, tmp_path: Path) -> None:
    def is_new(*arguments: Any, **changes: Any) -> bool:
        made = audit_counting(*arguments, **changes)[1] > 0
        assert audit_counting(*arguments, **changes)[1] == 0
        return made

    assert is_new()
    with (tmp_path / "own.py").open("a") as file:
        file.write("# changed\n")
    assert is_new()
    (tmp_path / "neighbour.py").write_text("")
    assert is_new()
    data = (tmp_path / "questions.jsonl").read_text()
    (tmp_path / "questions.jsonl").write_text(data.replace('"0+0="', '"0+1="').replace('"1+0="', '"1+1="'))
    assert is_new()
    assert is_new(Words("a", "b", "c"))
    assert is_new(Words("a", "b", template="x"))
    assert not is_new(Words("a", "b"))


def test_a_damaged_cache_is_no_cache(audit_counting: Audit, cache: Path) -> None:
    first, calls = audit_counting()
    (entry,) = cache.iterdir()
    for text in ("", "{", "[]", "{}", "\ud800".encode("utf-8", "surrogatepass").decode("latin-1")):
        entry.write_text(text)
        assert audit_counting() == (first, calls)
    assert list(cache.iterdir()) == [entry]


def test_a_cache_that_cannot_be_written_costs_an_audit(audit_counting: Audit, cache: Path) -> None:
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("a file where a folder should be")
    assert audit_counting()[1] > 0
    assert audit_counting()[1] > 0


def test_the_cache_is_in_the_users_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from steadyrl.audit import _cache

    monkeypatch.delenv("STEADYRL_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _cache() == tmp_path / ".cache/steadyrl/audit"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert _cache() == tmp_path / "x/steadyrl/audit"


def test_an_audit_that_ran_out_of_time_is_told_and_not_remembered(
    audit_counting: Audit, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steadyrl.audit.SECONDS", 0.0)
    (warning,), calls = audit_counting()
    assert "stopped after 0 s with 0 problems tried" in warning
    assert (calls, cache.exists()) == (1, False)  # the auditing workers try the function once


def test_generated_problems_are_not_drawn_for_the_digest() -> None:
    recipe = Recipe.model_validate(
        {"model": {"kind": "tiny"}, "task": {"kind": "reasoning_gym", "dataset": "zebra_puzzles"}}
    )
    task = build_task("reasoning_gym", seed=0, parameters=recipe.task.model_dump())
    assert len(digest(recipe, task, Words("a"))) == 64
    assert os.environ["STEADYRL_CACHE"]


def test_a_function_that_pays_the_form_alone_is_caught(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tags = "import re\ndef reward(prompt, completion, answer):\n"
    tags += "    form = r'<think>.*</think>\\s*<answer>.*</answer>'\n"
    tags += "    return 1.0 if re.fullmatch(form, completion.strip(), re.DOTALL) else -1.0\n"
    assert command("audit", with_reward(tmp_path, tags)) == 1
    assert "junk, another problem's answer: to" in capsys.readouterr().out


def test_forms_that_a_function_refuses_are_no_fault_and_the_table_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("audit", with_reward(tmp_path, EXACT)) == 0
    assert "has to pay one right form of each problem" in capsys.readouterr().out


def test_a_paid_empty_response_has_its_advice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    signed = "def reward(prompt, completion, answer):\n    return 0.0 if completion.strip() == answer else -1.0\n"
    assert command("audit", with_reward(tmp_path, signed), "--task.correct_at", "-1") == 1
    assert "The empty response is paid: raise task.correct_at" in capsys.readouterr().out
