"""A mistake in a recipe is told before torch and transformers are imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from recipes_for_tests import tree

CODE = """
import sys
from steadyrl.cli import main
status = main(["train", sys.argv[1]])
print(status, sorted({"torch", "transformers", "reasoning_gym", "sympy"} & sys.modules.keys()))
"""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"name": "gspo", "clip_low": -1}}, "objective.clip_low: Input should be greater than 0"),
        ({"task": {"kind": "chains", "max_terms": 2}}, "task: min_terms = 3 is above max_terms = 2"),
        ({"engine": {"kind": "vllm", "cache_gip": 1}}, "engine.cache_gip: unknown key; did you mean `cache_gib`?"),
        ({"advantage": "grpo"}, "advantage.name: 'grpo' is unknown; did you mean `group`?"),
        ({"steps": "many"}, "steps: Input should be a valid integer"),
    ],
)
def test_a_mistake_is_told_before_torch_is_loaded(tmp_path: Path, changes: dict, message: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(tree() | changes))
    done = subprocess.run([sys.executable, "-c", CODE, str(path)], capture_output=True, text=True, check=False)
    assert message in done.stderr
    assert done.stdout.strip() == "2 []"
