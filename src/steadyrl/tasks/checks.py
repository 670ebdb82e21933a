"""Two helpers the tasks share: a name that must be known, and which split a question belongs to."""

import difflib
import hashlib
from collections.abc import Iterable

from steadyrl.tasks.base import Split, TaskError


def require_known(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a name that is not among the known ones.

    Raises:
        TaskError: with the nearest known name, or all of them where none is near.
    """
    choices = sorted(known)
    for name in names:
        if name not in choices:
            near = difflib.get_close_matches(name, choices, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(choices)}"
            raise TaskError(f"{what} `{name}` is unknown; {hint}")


def split_of(question: str, *, held_out_share: float) -> Split:
    """The split a question belongs to, by its hash alone: no question is ever in both."""
    digest = hashlib.sha256(question.encode("utf-8", "surrogatepass")).digest()
    return "held_out" if int.from_bytes(digest[:4]) < held_out_share * 2**32 else "train"
