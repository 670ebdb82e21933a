"""From the recipe's task section, as plain values, to a task: the same in the run and in its workers."""

import inspect
from collections.abc import Mapping
from typing import Any

from steadyrl.tasks.base import Task, TaskError
from steadyrl.tasks.checks import require_known

_KINDS = ("chains", "rows", "reasoning_gym", "questions")
_OF_THE_RUN = {"kind", "correct_at"}  # fields of the section that the task itself does not read


def build_task(kind: str, *, seed: int, parameters: Mapping[str, Any]) -> Task:
    """Build a task.

    Args:
        kind: `chains`, `rows`, `reasoning_gym` or `questions`.
        seed: Seed of the problems; `questions` has nothing to draw.
        parameters: Fields of the recipe's task section; its `kind` and `correct_at` may be among
            them.

    Raises:
        TaskError: the kind or a field is unknown, missing or out of range, or the data cannot be read.
    """
    require_known("task", [kind], _KINDS)
    task = _task_class(kind)
    fields = {name: value for name, value in parameters.items() if name not in _OF_THE_RUN}
    expected = {n: p for n, p in inspect.signature(task).parameters.items() if n != "seed"}
    require_known(f"field of the {kind} task", fields, expected)
    if missing := {n for n, p in expected.items() if p.default is p.empty} - fields.keys():
        raise TaskError(f"the {kind} task needs {', '.join(sorted(missing))} as well")
    return task(**fields) if kind == "questions" else task(seed=seed, **fields)


def _task_class(kind: str) -> Any:
    """The class of a kind, imported only here: every worker would pay for reasoning-gym's slow import."""
    if kind == "chains":
        from steadyrl.tasks.chains import Chains as chosen
    elif kind == "rows":
        from steadyrl.tasks.rows import Rows as chosen
    elif kind == "reasoning_gym":
        from steadyrl.tasks.reasoning import ReasoningGym as chosen
    else:
        from steadyrl.tasks.questions import Questions as chosen
    return chosen
