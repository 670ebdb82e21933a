"""Progress on standard error: a live bar on a terminal, and elsewhere one line a minute."""

import math
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from steadyrl.run.logs import Value
from steadyrl.tasks.patience import SECONDS_BETWEEN_LINES


class Display:
    """Where the bars of a command appear. A bar may be opened while another is shown."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)

    def bar(self, title: str, total: int | None = None, *, done: int = 0) -> "Bar":
        """A progress bar.

        Args:
            title: what is being done.
            total: how many steps it has; None where nobody knows.
            done: how many of them an earlier process has taken.
        """
        return Bar(self._console, title, total, done=done)


class Bar:
    """Progress of one part of a command; a context manager.

    Elsewhere than on a terminal a bar prints a line a minute; one with a total also prints its first and last step.
    """

    def __init__(self, console: Console, title: str, total: int | None, *, done: int = 0):
        self._console, self._title, self._total = console, title, total
        self._done = self._first = done
        self._facts, self._started = "", time.monotonic()
        counted = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._live = Progress(
            *(SpinnerColumn(), TextColumn("{task.description}")),
            *((TimeElapsedColumn(),) if total is None else counted),
            TextColumn("{task.fields[facts]}"),
            console=console,
            disable=not console.is_terminal,
            transient=total is None,
        )
        self._task = self._live.add_task(title, total=total, completed=done, facts="")
        self._ended = threading.Event()
        self._teller = threading.Thread(target=self._tell_each_minute, daemon=True)

    def __enter__(self) -> Self:
        """Show it."""
        self._live.start()
        if not self._console.is_terminal:
            self._teller.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave it as it is; one without a total disappears."""
        self._ended.set()
        if not self._console.is_terminal:
            self._teller.join()
        self._live.stop()

    def step(self, step: int, metrics: Mapping[str, Value]) -> None:
        """A global step is done."""
        shown = {
            "reward": ("reward/mean", ".3f"),
            "KL": ("mismatch/k3", ".1e"),
            "entropy": ("policy/entropy", ".3f"),
            "tokens/s": ("throughput/tokens_per_second", ".0f"),
        }
        self.show(
            step, "  ".join(f"{label} {metrics.get(name, math.nan):{form}}" for label, (name, form) in shown.items())
        )

    def cold_start(self, step: int, loss: float, accuracy: float | None) -> None:
        """A step of the cold start is done."""
        self.show(step, f"loss {loss:.3f}" + ("" if accuracy is None else f"  accuracy {accuracy:.3f}"))

    def show(self, done: int, facts: str) -> None:
        """So many steps are done.

        Args:
            done: steps, those of an earlier process included.
            facts: a few words about the last one, or about the one that begins.
        """
        begins, self._done, self._facts = self._done == self._first, done, facts
        self._live.update(self._task, completed=done, facts=facts)
        if not self._console.is_terminal and (begins or done == self._total):
            self._tell()

    def _tell_each_minute(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_LINES):
            self._tell()

    def _tell(self) -> None:
        seconds = time.monotonic() - self._started
        taken = self._done - self._first
        count = "" if self._total is None else f" {self._done}/{self._total}"
        left = f", {seconds / taken * (self._total - self._done):.0f} s left" if self._total and taken else ""
        facts = f"  {self._facts}" if self._facts else ""
        self._console.print(f"{self._title}{count}{facts}  {seconds:.0f} s{left}", highlight=False, soft_wrap=True)
