import subprocess
import sys

import pytest

from steadyrl.recipe import resolve
from steadyrl.tasks import TaskError, build_task
from steadyrl.tasks.chains import Chains

CHAINS = {"min_terms": 3, "max_terms": 4, "teacher_noise": 0.0}


def test_the_recipes_section_is_enough() -> None:
    recipe = resolve({"model": {"kind": "tiny"}, "task": {"kind": "chains", "max_terms": 4}}, source="test")
    task = build_task("chains", seed=3, parameters=recipe.task.arguments())
    expected = Chains(seed=3, **CHAINS)
    assert isinstance(task, Chains)
    assert task.example("train", 7) == expected.example("train", 7)


@pytest.mark.parametrize(
    ("kind", "parameters", "message"),
    [
        ("chain", CHAINS, "task `chain` is unknown; did you mean `chains`?"),
        (
            "chains",
            CHAINS | {"max_trms": 3},
            "field of the chains task `max_trms` is unknown; did you mean `max_terms`",
        ),
        ("reasoning_gym", {}, "the reasoning_gym task needs dataset"),
        ("xyz", {}, "known: chains, questions, reasoning_gym, rows"),
    ],
)
def test_mistakes_are_named(kind: str, parameters: dict, message: str) -> None:
    with pytest.raises(TaskError) as caught:
        build_task(kind, seed=0, parameters=parameters)
    assert message in str(caught.value)


def test_a_chains_worker_loads_nothing_heavy() -> None:
    program = "import sys, steadyrl.tasks.worker, steadyrl.tasks.chains; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "reasoning_gym", "datasets", "sympy"} & set(loaded)
