"""Routes with where they come from, as they are stored: a tensor by token, and who chose which rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from steadyrl.model.routing import RoutingError
from steadyrl.types import Routes

Source = Literal["decode", "prefill", "cached_prefix", "recomputed"]
"""The forward that chose: one token at a time; a prompt at once; an earlier request's, whose cache was reused; or a
second one over tokens that had been decoded before, as after preemption."""
SOURCES: tuple[Source, ...] = get_args(Source)


@dataclass(frozen=True, kw_only=True, slots=True)
class RouteRun:
    """Consecutive rows with one origin, up to the next run's start."""

    start: int
    """First row."""
    policy_version: int
    """Gradient steps behind the weights that chose."""
    source: Source
    """The forward that chose."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RouteRecord:
    """The routes of one sequence, token-major, each row with its origin.

    A prompt of 3 tokens answered by 3 is fed 5 positions, so it has 5 rows. The first 2 came from a cached prefix of
    version 7, the prompt's last from a prefill of version 8, the other 2 were decoded:
    `runs = (RouteRun(0, 7, "cached_prefix"), RouteRun(2, 8, "prefill"), RouteRun(3, 8, "decode"))`.

    Raises:
        RoutingError: the routes are not [tokens, layers, slots] of an unsigned type, or the runs do not begin at row
            0, ascend and stay within the rows.
    """

    routes: Routes
    """Experts of each fed position; the type's largest value is the sentinel "no route: route natively"."""
    runs: tuple[RouteRun, ...]
    """Origins, in the order of the rows."""

    def __post_init__(self) -> None:
        """Hold the fields against one another."""
        if self.routes.ndim != 3 or self.routes.dtype not in (torch.uint8, torch.uint16):
            raise RoutingError(
                f"route_record.routes are {self.routes.dtype} {tuple(self.routes.shape)}; they must be uint8 or uint16 "
                "(tokens, layers, slots)"
            )
        starts, rows = [run.start for run in self.runs], len(self.routes)
        covers = starts[0] == 0 and starts[-1] < rows if starts else rows == 0
        if not covers or starts != sorted(set(starts)):
            raise RoutingError(
                f"route_record.runs start at {starts}; "
                f"for {rows} rows they must begin at 0, ascend and end below {rows}"
            )
        for run in self.runs:
            if run.policy_version < 0 or run.source not in SOURCES:
                raise RoutingError(
                    f"route_record.runs has {run}; the version counts from 0, the source is in {SOURCES}"
                )

    @property
    def bytes_per_token(self) -> float:
        """Bytes of the stored tensors for each row of routes; 0 for an empty record."""
        stored = sum(tensor.numel() * tensor.element_size() for tensor in self._tensors().values())
        return stored / len(self.routes) if len(self.routes) else 0.0

    def save(self, path: Path) -> None:
        """Write the record as safetensors."""
        save_file(self._tensors(), path)

    @classmethod
    def load(cls, path: Path) -> "RouteRecord":
        """Read a record back.

        Raises:
            RoutingError: the file is no record, is damaged, or holds one that does not fit together.
        """
        try:
            found = load_file(path)
        except (OSError, SafetensorError) as error:
            raise RoutingError(f"{path} is no route record: {error}") from error
        if found.keys() != {"routes", "start", "policy_version", "source"}:
            raise RoutingError(f"{path} is no route record: it holds {sorted(found)}")
        columns = [found[name].tolist() for name in ("start", "policy_version", "source")]
        if len({len(column) for column in columns}) != 1 or not all(0 <= s < len(SOURCES) for s in columns[2]):
            raise RoutingError(f"{path} is no route record: its runs are {columns} (start, policy_version, source)")
        runs = tuple(RouteRun(start=a, policy_version=v, source=SOURCES[s]) for a, v, s in zip(*columns, strict=True))
        return cls(routes=found["routes"], runs=runs)

    def _tensors(self) -> dict[str, Tensor]:
        return {
            "routes": self.routes.contiguous(),
            "start": torch.tensor([run.start for run in self.runs], dtype=torch.int64),
            "policy_version": torch.tensor([run.policy_version for run in self.runs], dtype=torch.int64),
            "source": torch.tensor([SOURCES.index(run.source) for run in self.runs], dtype=torch.uint8),
        }
