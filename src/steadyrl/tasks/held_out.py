"""Which questions are held out: by their text alone, with all spellings of a question on one side."""

import json
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence

from steadyrl.tasks.base import Example, TaskError
from steadyrl.tasks.checks import question_hash

_INVISIBLE = str.maketrans("", "", "\u200b\u2060\ufeff")  # spaces of no width, which `split` does not know


def choose(
    groups: Mapping[str, Sequence[Example]], held_out: int, source: str
) -> tuple[Collection[str], list[Example]]:
    """Hold out the questions with the lowest hashes, one pair of each.

    At least one question is left to train on. Where there are too few questions for that, further spellings of those
    that are held out make up the number.

    Args:
        groups: All pairs, from `by_question`.
        held_out: How many pairs.
        source: Name of the data, for messages.

    Returns:
        The keys of the questions that are not trained on, and the pairs, in the order of the hashes.

    Raises:
        TaskError: there are too few questions.
    """

    def lowest(key: str) -> bytes:
        # of the exact spellings: where no two are alike, nothing but the exact text counts
        return min(question_hash(pair.question) for pair in groups[key])

    aside = sorted(groups, key=lowest)[: max(0, min(held_out, len(groups) - 1))]
    chosen = [min(groups[key], key=_by_content) for key in aside]
    if len(chosen) < held_out:
        chosen += _other_spellings([groups[key] for key in aside], chosen)[: held_out - len(chosen)]
    if len(chosen) < held_out or not chosen:
        raise TaskError(
            f"task.held_out = {held_out}, but {source} has {len(groups)} different question(s): "
            "set aside at least 1 and leave at least 1 to train on"
        )
    return frozenset(aside), chosen


def _other_spellings(groups: Iterable[Sequence[Example]], chosen: Iterable[Example]) -> list[Example]:
    """One pair of each spelling that is not among those chosen."""
    seen, others = {_exact(pair) for pair in chosen}, []
    for pair in (pair for group in groups for pair in sorted(group, key=_by_content)):
        if (text := _exact(pair)) not in seen:
            seen.add(text)
            others.append(pair)
    return others


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
