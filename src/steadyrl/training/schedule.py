"""The learning rate of each gradient step."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A linear rise to the peak, then constant, or a fall that reaches 0 just after the last gradient step."""

    peak: float
    """Highest learning rate."""
    total: int
    """Gradient steps of the whole run."""
    warmup: int = 0
    """Gradient steps of the rise."""
    shape: Literal["constant", "linear", "cosine"] = "constant"
    """What follows the rise."""

    def at(self, number: int) -> float:
        """Learning rate of gradient step `number`, counted from 1."""
        if number <= self.warmup:
            return self.peak * number / self.warmup
        progress = (number - 1 - self.warmup) / max(1, self.total - self.warmup)
        if self.shape == "linear":
            return self.peak * (1.0 - progress)
        if self.shape == "cosine":
            return self.peak * 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.peak
