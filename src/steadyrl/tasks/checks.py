"""What the tasks share: refusing unknown names, and dividing questions into splits by their hash."""

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


def question_hash(question: str) -> bytes:
    """A hash of the text that is the same in every process."""
    return hashlib.sha256(question.encode("utf-8", "surrogatepass")).digest()


def split_of(question: str, *, held_out_share: float) -> Split:
    """The split a question belongs to, by its hash alone: no question is ever in both."""
    return "held_out" if int.from_bytes(question_hash(question)[:4]) < held_out_share * 2**32 else "train"
