"""What `train` and `resume` share: one process, Ctrl-C, a start that says what begins, and what came of it."""

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
from steadyrl.errors import UserError
from steadyrl.run.record import Record
from steadyrl.terminal import tell

if TYPE_CHECKING:
    from steadyrl.prepare import Prepared


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


def carry_out(path: Path, *, begin: "Callable[[Callable[[], bool], Callable[[Prepared], None]], Record]") -> int:
    """Train, and say at the start what begins and at the end what came of it.

    Args:
        path: the run directory.
        begin: trains; it gets what asks for a stop, and what is told of the start.

    Returns:
        The exit status.
    """
    started, steps = time.monotonic(), 0

    def on_start(ready: "Prepared") -> None:
        from steadyrl.plan import summary

        nonlocal steps
        steps = ready.recipe.steps
        print(summary(ready, run=path), flush=True)

    with _one_interrupt() as asked:
        try:
            record = begin(lambda: bool(asked), on_start)
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt(*asked[-1:]) from interrupt
    step = record.last_step
    if steps and not record.taken and step >= steps:
        print(f"all {steps} steps had been taken; nothing was left to train")
    print_accuracy(path)
    print(_outcome(record, time.monotonic() - started))
    if step >= steps:
        return 0
    tell(f"stopped at step {step} of {steps}; continue with `steadyrl resume {path}`")
    return 128 + asked[-1]


def _outcome(run: Record, seconds: float) -> str:
    """Where everything is, and what may be typed next."""
    return "\n".join(
        [
            f"{seconds:.0f} s; the run is in {run.path}",
            f"model   {run.model}, which AutoModelForCausalLM.from_pretrained loads",
            f"report  {run.report}",
            f"next    steadyrl eval {run.path}    evaluate the model again, also on other sets",
            f"        steadyrl gap {run.path}     compare the token-level gradient with the sequence-level one",
        ]
    )


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
