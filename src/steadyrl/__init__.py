"""SteadyRL: reinforcement learning for language models that stays stable.

    from steadyrl import Recipe, train

    run = train("demo", run="runs/first", optimizer={"learning_rate": 2e-4}, on_step=lambda step: print(step.reward))
    run.evaluations[-1]["accuracy"], run.report

`train`, `resume`, `evaluate` and `load` import torch when they are first used, and not before.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steadyrl.api import Record, Step, evaluate, load, resume, train
    from steadyrl.recipe import Recipe

__version__ = "0.1.0"
__all__ = ["Recipe", "Record", "Step", "evaluate", "load", "resume", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'steadyrl' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module("steadyrl.recipe" if name == "Recipe" else "steadyrl.api"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
