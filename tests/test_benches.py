"""Every benchmark runs: the figures of the docs can be made again."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from machine import has_gpu

ROOT = Path(__file__).parents[1]
BENCHES = sorted(path.stem for path in (ROOT / "bench").glob("[a-z]*.py"))
PEERS = {"vs_trl": "trl", "vllm_costs": "vllm"}


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHES)
def test_a_benchmark_runs_and_ends_with_its_figures(name):
    peer = PEERS.get(name)
    if peer and find_spec(peer) is None:
        pytest.skip(f"{name} measures against {peer}, which is not installed")
    if name == "gpu" and not has_gpu():
        pytest.skip("gpu measures a CUDA device; torch sees none")
    command = [sys.executable, f"bench/{name}.py", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert "machine" in figures
    assert len(figures) > 1
    assert "these figures mean nothing" in done.stdout


def test_every_figure_of_the_readme_names_a_benchmark_that_there_is():
    readme = (ROOT / "README.md").read_text()
    named = {part.partition(".py")[0] for part in readme.split("python bench/")[1:]}
    assert named
    assert named <= set(BENCHES)
