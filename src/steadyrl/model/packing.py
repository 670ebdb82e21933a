"""Sequences into packed micro-batches, and per-token results back to their responses."""

from collections.abc import Sequence

import torch

from steadyrl.types import Response, Routes, TokenBatch, Tokens


def first_fit(lengths: Sequence[int], *, columns: int) -> list[list[int]]:
    """Indices of the sequences in each row of at most `columns` positions; first-fit decreasing, stable.

    Raises:
        ValueError: a sequence is longer than a row.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        need = lengths[index]
        if need > columns:
            raise ValueError(f"sequence {index} feeds {need} tokens, more than the {columns} of a row")
        place = next((r for r, free in enumerate(room) if free >= need), None)
        if place is None:
            place = len(rows)
            rows.append([])
            room.append(columns)
        rows[place].append(index)
        room[place] -= need
    return rows
