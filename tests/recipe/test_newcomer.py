"""What CONTRIBUTING.md says of a new objective and a new task, done to the letter: a file each, no list edited."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from recipes_for_tests import tree

ROOT = Path(__file__).parents[2]
COMMANDS = """
import sys
from steadyrl.cli import main
sys.exit(max(main(arguments.split()) for arguments in sys.argv[1:]))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package with one more objective and one more task."""
    kept = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src" / "steadyrl", tmp_path / "src" / "steadyrl", ignore=kept)
    shutil.copy(ROOT / "examples" / "root_is.py", tmp_path / "src" / "steadyrl" / "algo" / "objectives")
    shutil.copy(ROOT / "examples" / "reversal.py", tmp_path / "src" / "steadyrl" / "tasks")
    return tmp_path


def run(package: Path, *commands: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(package / "src")}
    done = [sys.executable, "-c", COMMANDS, *commands]
    return subprocess.run(done, cwd=package, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_new_objective_and_a_new_task_train_are_shown_resumed_and_evaluated(package: Path) -> None:
    changes = {"objective": {"name": "root_is", "weight_cap": 3.0}, "task": {"kind": "reversal", "max_digits": 4}}
    recipe = tree(steps=2, checkpoints={"every": 1}) | changes
    (package / "mine.json").write_text(json.dumps(recipe))
    commands = ("train mine.json --run run", "show run", "resume run --checkpoint step-000001", "audit mine.json")
    done = run(package, *commands, "eval run --evaluate.prompts 4")
    assert done.returncode == 0, done.stderr
    page = (package / "run" / "report.html").read_text(encoding="utf-8")
    assert "root_is, weight_cap = 3.0" in page
    assert "reversal, max_digits = 4" in page


def test_their_options_are_fields_of_a_recipe(package: Path) -> None:
    changes = {"objective": {"name": "root_is", "weight_cup": 3.0}, "task": {"kind": "reversal", "min_digits": 9}}
    (package / "mine.json").write_text(json.dumps(tree() | changes))
    done = run(package, "train mine.json")
    assert done.returncode == 2
    assert "objective.weight_cup: unknown key; did you mean `weight_cap`?" in done.stderr
    assert "task: min_digits = 9 is above max_digits = 6" in done.stderr


def test_help_says_what_an_option_means(package: Path) -> None:
    changes = {"objective": {"name": "root_is"}, "task": {"kind": "reversal"}}
    (package / "mine.json").write_text(json.dumps(tree() | changes))
    done = run(package, "train mine.json --help")
    assert "truncated from above here" in " ".join(done.stdout.split())
    assert "Fewest digits." in done.stdout
