"""What the command line says before and after the work, and how soon."""

import io
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from recipes_for_tests import command, write_recipe
from steadyrl.cli import COMMANDS
from steadyrl.recipe import shipped
from steadyrl.run import progress
from steadyrl.run.progress import Bar
from steadyrl.start import too_old

HELP_SECONDS = 0.30
LOADED = """
import sys
from steadyrl.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as end:  # of tyro and argparse
    status = end.code
print(*sys.modules)
sys.exit(status)
"""


def run(*arguments: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, whose last line of output is every module that it has imported."""
    line = [sys.executable, "-c", LOADED, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False, cwd=folder)


def imported(done: subprocess.CompletedProcess[str]) -> set[str]:
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


# ---- the command line itself


def test_the_help_is_quick_and_imports_little() -> None:
    assert imported(run("--help")).isdisjoint({"pydantic", "tyro", "rich", "torch", "transformers"})
    spent = []
    for _ in range(9):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "steadyrl", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert statistics.median(spent) <= HELP_SECONDS


def test_the_help_has_one_line_for_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--help") == 0
    lines = capsys.readouterr().out.splitlines()
    for name in COMMANDS:
        assert len([line for line in lines if line.startswith(f"  {name} ")]) == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command(name, "--help")
    assert end.value.code == 0
    assert f"usage: steadyrl {name}" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--version") == 0
    assert capsys.readouterr().out.split()[0] == "steadyrl"


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("resum", "did you mean `resume`?"),
        ("mine.toml", "did you mean `steadyrl train mine.toml`?"),
        ("xyz", "There are init, recipes, train"),
    ],
)
def test_an_unknown_command_is_told_what_there_is(typed: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(typed) == 2
    assert hint in capsys.readouterr().err


# ---- mistakes


def mistaken(folder: Path, name: str) -> tuple[list[str | Path], str]:
    """A command with a mistake, and a part of what is said of it."""
    (folder / "taken").mkdir()
    good = write_recipe(folder)
    (folder / "misspelt.toml").write_text("[rollout]\npromts = 8\n")
    (folder / "data.toml").write_text('[model]\nkind = "tiny"\n[task]\nkind = "questions"\npath = "nowhere.csv"\n')
    return {
        "a misspelt field": (["train", "misspelt.toml"], "did you mean `prompts`?"),
        "a value out of range": (["train", good, "--steps", "-1"], "greater than or equal to 0"),
        "no data": (["train", "data.toml"], "cannot read the questions in nowhere.csv"),
        "too few problems": (
            ["train", good, "--update.micro-tokens", "4"],
            "update.micro_tokens = 4 is too small for a prompt and a response",
        ),
        "an existing folder": (["train", good, "--run", "taken"], "taken exists and is not a run directory"),
        "no such recipe": (["train", "dmo"], "did you mean demo?"),
        "no run": (["resume", "nowhere"], "nowhere is not a run directory"),
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        *("a misspelt field", "a value out of range", "no data", "too few problems"),
        *("an existing folder", "no such recipe", "no run"),
    ],
)
def test_a_mistake_is_told_before_torch_is_imported(name: str, tmp_path: Path) -> None:
    arguments, says = mistaken(tmp_path, name)
    done = run(*arguments, folder=tmp_path)
    assert done.returncode == 2
    assert says in " ".join(done.stderr.split())
    assert imported(done).isdisjoint({"torch", "transformers"})


# ---- recipes by name


def test_the_recipes_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("recipes") == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == shipped.names()
    assert {"demo", "smoke", "own-model"} <= set(listed)
    assert command("recipes", "smoke") == 0
    assert capsys.readouterr().out == shipped.find("smoke").read_text()


def test_a_recipe_is_known_by_name_and_a_file_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # a folder takes no name
    assert shipped.find("demo").parent == shipped.FOLDER
    assert shipped.find("demo.toml") == Path("demo.toml")


@pytest.mark.parametrize("name", shipped.names())
def test_every_recipe_finds_its_files_from_anywhere(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    task = shipped.read(name).task.model_dump()
    for place in (task.get("path", ""), task.get("reward", "")):
        file, _, _ = place.partition(":")
        assert Path(file).suffix not in (".jsonl", ".py") or Path(file).is_file()


# ---- init


def test_init_writes_a_recipe_that_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pairs.csv").write_text("q,a\n1+1,2\n")
    target = tmp_path / "own.toml"
    flags = ["--model", 'C:\\mo"del', "--data", str(tmp_path / "pairs.csv"), "--question-column", "q"]
    assert command("init", target, *flags, "--answer-column", "a", "--reward", "own.py:f", "--replay", "R3") == 0
    assert f"steadyrl train {target} --dry-run" in capsys.readouterr().out
    recipe = shipped.read(str(target))
    assert recipe.model.model_dump()["path"] == 'C:\\mo"del'
    task = recipe.task.model_dump()
    assert (task["question_column"], task["answer_column"], task["reward"]) == ("q", "a", "own.py:f")
    assert recipe.update.replay == "R3"
    assert target.read_text().count("#") > 5


def test_init_asks_for_what_no_flag_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "pairs.csv"
    data.write_text("q,a\n1+1,2\n")
    asked: list[str] = []
    answers = iter(["some/model", str(data), "q", "a", "", ""])

    def answer(question: str) -> str:
        asked.append(question)
        return next(answers)

    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", answer)
    assert command("init", tmp_path / "own.toml") == 0
    assert "there are q, a" in asked[2]
    recipe = shipped.read(str(tmp_path / "own.toml"))
    assert recipe.task.model_dump()["question_column"] == "q"
    assert recipe.update.replay == "none"  # what an empty answer means


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "--model is missing: folder of your model"),
        (["--model", "m"], "--data is missing"),
        (["--model", "m", "--data", "d", "--replay", "R4"], "update.replay: Input should be 'none', 'R2' or 'R3'"),
    ],
)
def test_init_writes_nothing_that_cannot_be_read(
    flags: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("init", tmp_path / "own.toml", *flags) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_init_leaves_a_file_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own.toml"
    file.write_text("mine")
    assert command("init", file, "--model", "m", "--data", "d") == 2
    assert "exists already" in capsys.readouterr().err
    assert file.read_text() == "mine"


# ---- start, progress and end


def test_a_run_says_what_begins_and_where_everything_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "run"
    assert command("train", write_recipe(tmp_path), "--run", target, "--steps", "2") == 0
    out, err = capsys.readouterr()
    start, _, end = out.partition("held-out accuracy")
    for said in (
        f"run        {target}\n",
        "parameters, float32 on cpu, 1 thread(s)\n",
        "task       chains, endless training problems\n",
        "training   2 global steps",
        "evaluation 16 held-out prompts × 1; before and after, and every 2 steps\n",
        "memory     at least 0.0",
        "prompt     4 tokens, the first as the model sees it:\n",
    ):
        assert said in start
    assert f"model   {target}/checkpoints/step-000002/model," in end
    assert f"next    steadyrl eval {target} " in end
    assert "training 2/2" in err
    assert "training 2/2" not in out


def test_training_says_which_transformers_it_needs() -> None:
    assert "transformers 5.10.4 is installed. Training is tested with 5.17" in str(too_old("5.10.4"))
    assert too_old("5.17.0") is None
    assert too_old("6.0.0.dev0") is None


def shown(total: int | None, *, terminal: bool, steps: int = 0, seconds: float = 0.0) -> str:
    """What a bar writes."""
    file = io.StringIO()
    with Bar(Console(file=file, force_terminal=terminal, width=100), "counting", total) as bar:
        for step in range(1, steps + 1):
            bar.show(step, f"fact {step}")
        time.sleep(seconds)
    return file.getvalue()


def test_a_log_gets_the_first_and_the_last_step() -> None:
    lines = shown(3, terminal=False, steps=3).splitlines()
    assert [line.split("  ")[:2] for line in lines] == [["counting 1/3", "fact 1"], ["counting 3/3", "fact 3"]]


def test_a_log_gets_one_line_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(None, terminal=False) == ""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.2)  # of a minute that passes quickly
    assert shown(None, terminal=False, seconds=0.5).splitlines() == ["counting  0 s"] * 2


def test_a_terminal_gets_a_bar() -> None:
    assert "3/3" in shown(3, terminal=True, steps=3)


def test_bars_may_be_nested_on_a_terminal() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100)
    with Bar(console, "training", 3) as outer:
        outer.show(1, "")
        with Bar(console, "evaluating", None):
            time.sleep(0.3)  # a bar is drawn ten times a second
        outer.show(2, "")
    assert "evaluating" in file.getvalue()
    assert "2/3" in file.getvalue()
