"""What `train` and `resume` share: a start that says what begins, Ctrl-C, and what came of it."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from steadyrl.commands.accuracy import print_accuracy
from steadyrl.commands.start import loaded
from steadyrl.errors import UserError
from steadyrl.recipe import Recipe
from steadyrl.run.progress import Display
from steadyrl.tasks.base import Task
from steadyrl.terminal import tell

if TYPE_CHECKING:
    from steadyrl.parts import Parts
    from steadyrl.prepare import Prepared
    from steadyrl.run.directory import Run


def refuse_several_processes() -> None:
    """Refuse a launcher that starts the command more than once: every process would train the whole run.

    Raises:
        UserError: one of several processes.
    """
    sizes = {"WORLD_SIZE": "", "SLURM_STEP_NUM_TASKS": "SLURM_PROCID", "OMPI_COMM_WORLD_SIZE": "", "PMI_SIZE": ""}
    for name, also in sizes.items():
        size = os.environ.get(name, "").strip()
        if size.isdigit() and int(size) > 1 and (not also or also in os.environ):
            raise UserError(
                f"{name} = {size}: this command was started as one of {size} processes, and one process trains. "
                "Start it once, without torchrun, mpirun or several tasks of srun"
            )


def carry_out(
    recipe: Recipe,
    path: Path,
    *,
    open_run: "Callable[[Prepared], Run]",
    task: Task | None = None,
    before: "Callable[[Prepared], None]" = lambda ready: None,
) -> int:
    """Train, and say at the start what begins and at the end what came of it.

    Args:
        recipe: what is asked for.
        path: the run directory.
        open_run: makes or opens it; it gets what `prepare` found out.
        task: of the recipe, where it has been built.
        before: looks at the same, before any weight is loaded.
    """
    from steadyrl.consistency import recipe_warnings
    from steadyrl.plan import summary
    from steadyrl.prepare import prepare

    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        asked = stack.enter_context(_one_interrupt())
        ready = stack.enter_context(prepare(recipe, task))
        before(ready)
        print(summary(ready, run=path), flush=True)
        for warning in (*recipe_warnings(recipe), *ready.warnings):
            tell(warning)
        parts = stack.enter_context(loaded(ready))
        _audit(parts, ready)
        step, taken = _trained(parts, ready, open_run(ready), asked)
    if recipe.steps and not taken and step >= recipe.steps:
        print(f"all {recipe.steps} steps had been taken; nothing was left to train")
    print_accuracy(path)
    print(_outcome(path, time.monotonic() - started))
    if step >= recipe.steps:
        return 0
    tell(f"stopped at step {step} of {recipe.steps}; continue with `steadyrl resume {path}`")
    return 128 + asked[-1]


def _audit(parts: "Parts", ready: "Prepared") -> None:
    """Say what is odd about the model and the verifier."""
    from steadyrl.audit import at_start

    with Display().bar("auditing the verifier"):
        rollouter = parts.rollouter
        found = at_start(ready.recipe, rollouter.task, rollouter.pool, rollouter.tokenizer)
    for warning in (*parts.trainer.policy.warnings, *found):
        tell(warning)


def _trained(parts: "Parts", ready: "Prepared", run: "Run", asked: list[int]) -> tuple[int, int]:
    """Train to the last step, or to the one after which a signal asked for a stop.

    Returns:
        The last global step, and how many were taken now.
    """
    from steadyrl.guard import TrainingStopped
    from steadyrl.loop import train

    try:
        return train(ready.recipe, parts.rollouter, parts.trainer, parts.evaluator, run, stop_asked=lambda: bool(asked))
    except TrainingStopped as error:
        raise TrainingStopped(f"{error}. {_way_on(run.path)}") from error
    except UserError as error:
        raise UserError(f"{error}. {_way_on(run.path)}") from error
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(*asked[-1:]) from interrupt
    finally:
        run.close()


def _outcome(run: Path, seconds: float) -> str:
    """Where everything is, and what may be typed next."""
    from steadyrl.run.checkpoint import listed

    folder = listed(run / "checkpoints")[-1] / "model"
    return "\n".join(
        [
            f"{seconds:.0f} s; the run is in {run}",
            f"model   {folder}, which AutoModelForCausalLM.from_pretrained loads",
            f"report  {run / 'report.html'}",
            f"next    steadyrl eval {run}    evaluate the model again, also on other sets",
            f"        steadyrl gap {run}     compare the token-level gradient with the sequence-level one",
        ]
    )


def _way_on(run: Path) -> str:
    return f"To change a setting, edit {run / 'recipe.json'}, then run `steadyrl resume {run}`"


@contextlib.contextmanager
def _one_interrupt() -> Iterator[list[int]]:
    """The first Ctrl-C (or a scheduler's SIGTERM) asks for a stop after the step; the second interrupts at once.

    Yields:
        The signals that came, in order.
    """
    asked: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        asked.append(signum)
        if len(asked) > 1:
            raise KeyboardInterrupt(signum)
        print("stopping after this step; press Ctrl-C again to stop at once", file=sys.stderr)

    before = {one: signal.signal(one, note) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
