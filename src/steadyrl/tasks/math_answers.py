"""Checking mathematical answers with math_verify."""

import logging
from typing import Any

import math_verify

from steadyrl.tasks.base import TaskError

_NO_LIMIT: Any = None  # its own limit is a signal; the scoring's limit holds in C code too
logging.getLogger("math_verify").setLevel(logging.ERROR)  # it would warn of that


def math_verify_score(answer: str, completion: str) -> float:
    """1 if math_verify finds the completion's result equal to the reference answer, else 0.

    An answer without LaTeX delimiters is read as a formula, and of a worked answer that ends in `#### 72`, as
    in GSM8K, the part behind the mark counts.

    Raises:
        TaskError: the reference answer holds nothing that math_verify can read.
    """
    expected = read_reference(answer)
    found = math_verify.parse(completion, parsing_timeout=_NO_LIMIT)
    return float(math_verify.verify(expected, found, timeout_seconds=_NO_LIMIT))


def read_reference(answer: str) -> Any:
    """What math_verify reads in a reference answer.

    Raises:
        TaskError: nothing.
    """
    gold = answer.rpartition("####")[2].strip()
    delimited = any(mark in gold for mark in ("$", "\\boxed", "\\(", "\\["))
    expected = math_verify.parse(gold if delimited else f"${gold}$", parsing_timeout=_NO_LIMIT)
    if not expected:
        raise TaskError(f"math_verify cannot read the answer {answer!r}; give a formula, or score it yourself")
    return expected
