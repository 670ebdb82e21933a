"""What a run has written down, read back: for `train`'s callbacks, notebooks and sweeps."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from steadyrl.run.logs import Row, Value, last_step_rows, read_jsonl


@dataclass(frozen=True, slots=True)
class Step:
    """A global step, as `metrics.jsonl` has it."""

    number: int
    """Which, counted from 1."""
    metrics: Mapping[str, Value]
    """By name; docs/metrics.md says what they mean."""

    @property
    def reward(self) -> float | None:
        """Mean reward; None where no response had one."""
        return self._number("reward/mean")

    @property
    def accuracy(self) -> float | None:
        """Share of the rewards that reach `task.correct_at`."""
        return self._number("reward/accuracy")

    @property
    def mismatch(self) -> float | None:
        """D_KL[μ‖π_old] by k3: how far training and inference engine differ. None in a step that was skipped."""
        return self._number("mismatch/k3")

    @property
    def entropy(self) -> float | None:
        """Mean entropy of π_old where tokens were sampled, in nats."""
        return self._number("policy/entropy")

    def _number(self, name: str) -> float | None:
        value = self.metrics.get(name)
        return float(value) if isinstance(value, int | float) else None


@dataclass(frozen=True, slots=True)
class Record:
    """A run directory, read again at each access; works while the run trains."""

    path: Path
    """The run directory."""
    taken: int | None = None
    """Global steps that `train` or `resume` took before it returned this; None for a directory that is only read."""

    @property
    def steps(self) -> list[Step]:
        """The global steps so far."""
        return [Step(int(row["step"]), row) for row in self.metrics]  # pyright: ignore[reportArgumentType]

    @property
    def last_step(self) -> int:
        """The number of the last global step; 0 before the first. Reads the end of the file alone."""
        rows = last_step_rows(self.path / "metrics.jsonl")
        return int(rows[-1]["step"]) if rows else 0  # pyright: ignore[reportArgumentType]

    @property
    def metrics(self) -> list[Row]:
        """Rows of `metrics.jsonl`, one for each global step."""
        return self._rows("metrics.jsonl")

    @property
    def evaluations(self) -> list[Row]:
        """Rows of `eval.jsonl`: accuracy and reward with their intervals, for each set, mode and precision."""
        return self._rows("eval.jsonl")

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.path / "report.html"

    @property
    def model(self) -> Path | None:
        """The newest saved model, which `AutoModelForCausalLM.from_pretrained` loads; None before the first."""
        from steadyrl.run.checkpoint import listed  # it imports torch

        saved = listed(self.path / "checkpoints")
        return saved[-1] / "model" if saved else None

    def _rows(self, name: str) -> list[Row]:
        return read_jsonl(self.path / name) if (self.path / name).exists() else []
