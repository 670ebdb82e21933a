"""Progress on the terminal: a live bar where there is one, a line now and then where output goes to a file."""

import math
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from steadyrl.run.logs import Value

SECONDS_BETWEEN_LINES = 15.0


class Bar:
    """Progress of one stretch of a run; a context manager."""

    def __init__(self, title: str, total: int, *, done: int = 0):
        self._console = Console()
        self._live = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._title, self._total = title, total
        self._task = self._live.add_task(title, total=total, completed=done, facts="")
        self._started, self._printed, self._first = time.monotonic(), 0.0, done

    def __enter__(self) -> Self:
        """Show it."""
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave it as it stands."""
        self._live.stop()

    def step(self, step: int, metrics: Mapping[str, Value]) -> None:
        """A global step is done."""
        shown = {
            "reward": ("reward/mean", ".3f"),
            "KL": ("mismatch/k3", ".1e"),
            "entropy": ("policy/entropy", ".3f"),
            "tokens/s": ("throughput/tokens_per_second", ".0f"),
        }
        self._show(
            step, "  ".join(f"{label} {metrics.get(name, math.nan):{form}}" for label, (name, form) in shown.items())
        )

    def cold_start(self, step: int, loss: float, accuracy: float | None) -> None:
        """A step of the cold start is done."""
        self._show(step, f"loss {loss:.3f}" + ("" if accuracy is None else f"  accuracy {accuracy:.3f}"))

    def _show(self, step: int, facts: str) -> None:
        self._live.update(self._task, completed=step, facts=facts)
        now = time.monotonic()
        due = now - self._printed >= SECONDS_BETWEEN_LINES or step == self._total
        if not self._console.is_terminal and due:
            left = (now - self._started) / max(1, step - self._first) * (self._total - step)
            self._console.print(f"{self._title} {step}/{self._total}  {facts}  {left:.0f} s left", highlight=False)
            self._printed = now
