"""Which problem, and which random numbers, belong to a step: pure functions of the seed, so that nothing about them
has to be saved for a run to resume."""

import hashlib
import random
from functools import lru_cache


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed for what `parts` name, such as `seed_of(7, "rollout", 12)`."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def problem_indices(seed: int, step: int, count: int, size: int | None) -> list[int]:
    """Indices of the problems of global step `step`, which counts from 1.

    An endless task is read in order; a finite one is shuffled again in each epoch.
    """
    first = (step - 1) * count
    if size is None:
        return list(range(first, first + count))
    return [_shuffled(seed, position // size, size)[position % size] for position in range(first, first + count)]


@lru_cache(maxsize=2)
def _shuffled(seed: int, epoch: int, size: int) -> tuple[int, ...]:
    return tuple(random.Random(seed_of(seed, "epoch", epoch)).sample(range(size), size))
