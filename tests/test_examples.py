"""The examples run as their pages say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from steadyrl.run.record import Record

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: str | Path, folder: Path) -> str:
    line = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_the_minimal_example_learns_and_has_at_most_200_lines(tmp_path: Path) -> None:
    said = run("minimal.py", "14", folder=tmp_path)
    first, last = map(float, re.findall(r"reward (\S+) at first, (\S+) at last", said)[0])
    assert last > first + 0.3
    assert len((EXAMPLES / "minimal.py").read_text().splitlines()) <= 200


@pytest.mark.slow
def test_the_sweep_trains_each_rate_in_a_directory_of_its_own(tmp_path: Path) -> None:
    said = run("sweep.py", tmp_path / "sweep", folder=tmp_path)
    assert len(re.findall(r"^learning rate .*: accuracy 0\.\d+", said, flags=re.M)) == 3
    runs = [Record(path) for path in sorted((tmp_path / "sweep").iterdir())]
    assert [len(one.steps) for one in runs] == [8, 8, 8]
    assert {float(str(step.metrics["update/learning_rate"])) for one in runs for step in one.steps[-1:]} == {
        3e-4,
        1e-3,
        3e-3,
    }
