"""From the recipe's task section, as plain values, to a task: the same in the run and in its workers."""

import inspect
from collections.abc import Mapping
from typing import Any

from steadyrl.options.own import OwnCodeError, find_own, is_own, load_own
from steadyrl.options.source import declared
from steadyrl.tasks.base import Task, TaskError
from steadyrl.tasks.checks import require_known

_OF_THE_RUN = {"kind", "correct_at"}  # fields of the section that the task itself does not read


def build_task(kind: str, *, seed: int, parameters: Mapping[str, Any]) -> Task:
    """Build a task.

    Args:
        kind: the kind of a class in this folder, or the user's own as `file.py:Class` or `module:Class`.
        seed: Seed of the problems, for a class that takes one.
        parameters: Fields of the recipe's task section; its `kind` and `correct_at` may be among them.

    Raises:
        TaskError: the kind or a field is unknown, missing or out of range, or the data cannot be read.
    """
    task = _task_class(kind)
    fields = {name: value for name, value in parameters.items() if name not in _OF_THE_RUN}
    expected = dict(inspect.signature(task).parameters)
    given = {} if expected.pop("seed", None) is None else {"seed": seed}
    require_known(f"field of the {kind} task", fields, expected)
    if missing := {n for n, p in expected.items() if p.default is p.empty} - fields.keys():
        raise TaskError(f"the {kind} task needs {', '.join(sorted(missing))} as well")
    return task(**given, **fields)


def _task_class(kind: str) -> Any:
    """The class of a kind; only its module is imported: every worker would pay for reasoning-gym's slow import."""
    if not is_own(kind):
        require_known("task", [kind], declared("task"))
        return declared("task")[kind].load()
    try:
        return load_own(find_own(kind, field="task.kind"))
    except OwnCodeError as error:
        raise TaskError(str(error)) from error
