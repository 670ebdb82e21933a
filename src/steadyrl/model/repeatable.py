"""The same bits again: sums in one order."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic

_FILL: Any = torch.utils.deterministic  # its one setting is not in its stubs


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Inside, the same computation gives the same bits on the CPU, however many threads there are.

    Without it, gradients that several positions send to one (experts gather a token once for each slot) are added in
    the order in which threads arrive. A GPU is left alone: some of its kernels have no such order to offer.
    """
    if device.type != "cpu":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), _FILL.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    _FILL.fill_uninitialized_memory = False  # a help in debugging, and slow
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        _FILL.fill_uninitialized_memory = before[1]
