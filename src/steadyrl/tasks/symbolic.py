"""math_verify, for what `formulas` does not read: inequalities, conditions, functions of several cases.

math_verify evaluates what it reads, so it gets only what is short and has no large power.
"""

import logging
import re
from typing import Any

_NO_LIMIT: Any = None  # its own limit is a signal, which works in a main thread only
_LONGEST = 200
_LARGE = re.compile(r"\d{12}|\^\s{0,3}\{?\s{0,3}[-+(]{0,2}\s{0,3}(?:\d{3}|\d*\s{0,3}\^)|\^[^^]{0,9}\^|!")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_PLAIN_COMMANDS = r"\frac \sqrt \pi \infty \le \ge \ne \in \cup \cap \mid \mathbb \emptyset \setminus \begin \end"
_PLAIN = frozenset(_PLAIN_COMMANDS.split())


def can_read(latex: str) -> bool:
    """Whether math_verify finds a formula in it."""
    return _is_small(latex) and bool(_parsed(latex))


def is_equal(expected: str, given: str) -> bool:
    """Whether math_verify finds both equal. Commands that compute, such as `\\sum`, must be in the reference too."""
    allowed = _PLAIN | set(_COMMAND.findall(expected))
    if not (_is_small(expected) and _is_small(given) and set(_COMMAND.findall(given)) <= allowed):
        return False
    import math_verify

    first, second = _parsed(expected), _parsed(given)
    return bool(first and second) and math_verify.verify(first, second, timeout_seconds=_NO_LIMIT)


def _is_small(latex: str) -> bool:
    return len(latex) <= _LONGEST and _LARGE.search(latex) is None and latex.count("^") <= 8


def _parsed(latex: str) -> list[Any]:
    """What math_verify reads in it as a whole; texts that it could only copy are left out."""
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it would warn of the missing limit
    found = math_verify.parse(f"${latex}$", parsing_timeout=_NO_LIMIT)
    return [one for one in found if not isinstance(one, str)]
