"""Time and memory of a global step."""

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch


class Clock:
    """Seconds spent in each phase of a step."""

    def __init__(self, device: torch.device):
        self._device = device
        self._start = time.perf_counter()
        self.seconds: dict[str, float] = {}
        """By phase, as `seconds/<phase>`."""

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time a phase, until the device has done its part."""
        start = self._now()
        yield
        self.add(phase, self._now() - start)

    def add(self, phase: str, seconds: float) -> None:
        """Add time that was measured elsewhere."""
        self.seconds[f"seconds/{phase}"] = self.seconds.get(f"seconds/{phase}", 0.0) + seconds

    def total(self, others: Mapping[str, float]) -> float:
        """Add the phases that another clock has timed, note the whole time since this clock was made, and return it."""
        for name, seconds in others.items():
            self.add(name.removeprefix("seconds/"), seconds)
        self.seconds["seconds/step"] = self._now() - self._start
        return self.seconds["seconds/step"]

    def peak_memory(self) -> float:
        """Return the largest GiB in use: of the GPU since the last call where there is one, else of this process."""
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device) / 2**30
            torch.cuda.reset_peak_memory_stats(self._device)
            return peak
        unit = 1 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
