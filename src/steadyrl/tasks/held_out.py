"""Which questions are held out: by their text alone, with all spellings of a question on one side."""

import json
import unicodedata
from collections.abc import Mapping

from steadyrl.tasks.base import Example, Split, TaskError
from steadyrl.tasks.checks import question_hash

_INVISIBLE = str.maketrans("", "", "\u200b\u2060\ufeff")  # spaces of no width, which `split` does not know


def divide(examples: Mapping[int, Example], held_out: int | None, source: str) -> dict[Split, list[int]]:
    """Hold out the questions with the lowest hashes, one pair of each; train on the pairs of all others.

    Args:
        examples: The pairs, by the position of their row.
        held_out: How many questions; None: all pairs, in the order of the rows.
        source: Name of the data, for messages.

    Returns:
        Positions by split: training pairs in the order of the rows, held-out ones by their hash.

    Raises:
        TaskError: there are too few questions.
    """
    if held_out is None:
        return {"train": [], "held_out": list(examples)}
    groups = spellings(examples)
    if not 0 < held_out < len(groups):
        raise TaskError(
            f"held_out = {held_out}, but {source} has {len(groups)} different question(s): "
            "set aside at least 1 and leave at least 1 to train on"
        )
    # the lowest hash of the exact spellings, so that where no two are alike nothing but the exact text counts
    order = sorted(groups, key=lambda key: min(map(question_hash, groups[key])))
    aside = {key: index for index, key in enumerate(order[:held_out])}
    train: list[int] = []
    chosen: list[int | None] = [None] * held_out
    for position, pair in examples.items():
        index = aside.get(question_key(pair))
        if index is None:
            train.append(position)
        elif (best := chosen[index]) is None or _by_content(pair) < _by_content(examples[best]):
            chosen[index] = position
    return {"train": train, "held_out": [position for position in chosen if position is not None]}


def spellings(examples: Mapping[int, Example]) -> dict[str, set[str]]:
    """The different texts of each question, by its key."""
    groups: dict[str, set[str]] = {}
    for pair in examples.values():
        groups.setdefault(question_key(pair), set()).add(_exact(pair))
    return groups


def question_key(pair: Example) -> str:
    """What all spellings of a question share: its text in NFC, with every run of white space as one space.

    Of a conversation all messages count but those of the system: `go on` after another talk is another question.
    """
    return fold(_exact(pair))


def fold(text: str) -> str:
    """Text in NFC, with every run of white space as one space, and none at the ends."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text.translate(_INVISIBLE))
    return " ".join(text.split())


def _exact(pair: Example) -> str:
    turns = [turn["content"] for turn in pair.messages or () if turn["role"] not in ("system", "developer")]
    return "\n".join(turns) if turns else pair.question


def _by_content(pair: Example) -> tuple[str, ...]:
    """Of pairs that share a question, the first by content is held out: the order of the file does not matter."""
    return (pair.answer, pair.solution, _exact(pair), json.dumps([pair.messages, pair.row], sort_keys=True))
