"""Progress on standard error for what takes more than a moment before a run begins."""

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import TypeVar

T = TypeVar("T")

SECONDS_OF_SILENCE = 2.0
SECONDS_BETWEEN_LINES = 60.0
_SECONDS_BETWEEN_UPDATES = 0.1


def watched(items: Iterable[T], what: str, *, total: int | None = None) -> Iterator[T]:
    """The items, while standard error says how many there were so far, once they take more than two seconds.

    On a terminal, one line changes in place and disappears at the end; elsewhere there is a line now and then.

    Args:
        items: What to go through.
        what: What is done, such as `reading pairs.jsonl`.
        total: How many items there will be, where that is known.
    """
    console, status = None, None
    due = time.monotonic() + SECONDS_OF_SILENCE
    with ExitStack() as stack:
        for count, item in enumerate(items, 1):
            yield item
            if time.monotonic() < due:
                continue
            from rich.console import Console  # verifier workers, which are quick, do without it
            from rich.text import Text

            text = Text(f"{what}: {count:,}" + ("" if total is None else f" of {total:,}"))
            if console is None:
                console = Console(stderr=True)
                status = stack.enter_context(console.status(text)) if console.is_terminal else None
            if status is None:
                console.print(text)
            else:
                status.update(text)
            due = time.monotonic() + (SECONDS_BETWEEN_LINES if status is None else _SECONDS_BETWEEN_UPDATES)
