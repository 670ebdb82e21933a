"""What every benchmark shares: alternate, take the median ratio, print a table and one JSON object.

With `--quick` a benchmark runs on small sizes, to show that it runs: its figures then mean nothing.
"""

import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

MODEL = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "intermediate_size": 64,
    "norm_topk_prob": True,
    "max_position_embeddings": 512,
}
"""Config of the Qwen3 mixture of experts, 1.8 M parameters, that the peers are measured on."""


QUICK = ["--quick"] if "--quick" in sys.argv else []
"""The flag, as a process that a benchmark starts takes it."""


def sized(whole: int, quick: int) -> int:
    """A size of a benchmark, and what it is with `--quick`."""
    return quick if QUICK else whole


def arguments() -> list[str]:
    """What a benchmark was called with, but for `--quick`."""
    return [argument for argument in sys.argv[1:] if argument not in QUICK]


def alternate(ours: Callable[[], Any], theirs: Callable[[], Any], *, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each in turn, A B B A A B …, so that neither gains by its place; the first round is not counted."""
    pairs: list[tuple[float, float]] = []
    for number in range(rounds + 1):
        if number % 2:
            second = seconds(theirs)
            pairs.append((seconds(ours), second))
        else:
            pairs.append((seconds(ours), seconds(theirs)))
    return [a for a, _ in pairs[1:]], [b for _, b in pairs[1:]]


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_gib() -> float:
    """Peak memory of this process since its program was loaded, in GiB.

    `getrusage` will not do: it starts from the memory of the process that this one was forked from.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**20
    raise OSError("/proc/self/status has no VmHWM: peak memory is measured on Linux only")


def median_ratio(first: Sequence[float], second: Sequence[float]) -> float:
    """Median over the rounds of first/second: each round saw the machine in one mood."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


def ratio_interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """95% bootstrap interval of `median_ratio`."""
    ratios, draw = [a / b for a, b in zip(first, second, strict=True)], random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(1000))
    return medians[25], medians[974]


def show(title: str, rows: Sequence[Mapping[str, Any]], figures: Mapping[str, Any]) -> None:
    """A table, the machine, and as the last line the figures as JSON."""
    columns = list(rows[0])
    cells = [columns, *([_cell(row[c]) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    print(f"\n{title}{' (quick: these figures mean nothing)' if QUICK else ''}")
    for line in cells:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    print(machine)
    print(json.dumps({**figures, "machine": machine}))


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
