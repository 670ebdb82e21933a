"""Which questions are held out: by their text alone, with all spellings of a question on one side."""

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from steadyrl.tasks.base import Example, TaskError
from steadyrl.tasks.checks import question_hash

_INVISIBLE = str.maketrans("", "", "\u200b\u2060\ufeff")  # spaces of no width, which `split` does not know


def choose(groups: Mapping[str, Sequence[Example]], held_out: int, source: str) -> dict[str, Example]:
    """Hold out the questions with the lowest hashes, one pair of each.

    Args:
        groups: All pairs, from `by_question`.
        held_out: How many questions.
        source: Name of the data, for messages.

    Returns:
        The pairs by their question's key, in the order of the hashes.

    Raises:
        TaskError: there are too few questions.
    """
    if not 0 < held_out < len(groups):
        raise TaskError(
            f"held_out = {held_out}, but {source} has {len(groups)} different question(s): "
            "set aside at least 1 and leave at least 1 to train on"
        )

    def lowest(key: str) -> bytes:
        # of the exact spellings: where no two are alike, nothing but the exact text counts
        return min(question_hash(pair.question) for pair in groups[key])

    return {key: min(groups[key], key=_by_content) for key in sorted(groups, key=lowest)[:held_out]}


def by_question(pairs: Iterable[Example]) -> dict[str, list[Example]]:
    """The pairs of each question, by its key."""
    groups: dict[str, list[Example]] = {}
    for pair in pairs:
        groups.setdefault(question_key(pair), []).append(pair)
    return groups


def count_near(groups: Mapping[str, Sequence[Example]]) -> int:
    """How many questions are written in another way elsewhere: exact spellings beyond the first of each question."""
    return sum(len({_exact(pair) for pair in group}) - 1 for group in groups.values() if len(group) > 1)


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
