"""Reading a reference answer. What cannot be read is rejected."""

from steadyrl.tasks.answer_values import Formula, Opaque, ReadAnswer
from steadyrl.tasks.answers import behind_last_mark, last_box, last_tag
from steadyrl.tasks.base import TaskError
from steadyrl.tasks.formula_values import exact
from steadyrl.tasks.formulas import parts
from steadyrl.tasks.reading import PLAIN_NUMBER, PLAIN_WORDS, RELATION, read_answer

Reference = ReadAnswer
_MOST_WORDS = 50  # of a reference that is a text


def read_reference(answer: str) -> Reference:
    """Reads a reference answer: a number, formula, list, word or choice letter, or a worked answer with `#### 72`.

    Raises:
        TaskError: there is no answer in it, or it is LaTeX that cannot be read. The message names no line.
    """
    if PLAIN_NUMBER.fullmatch(answer) or PLAIN_WORDS.fullmatch(answer):
        return read_answer(answer)
    way_out = "give a number, a formula, a word or a choice letter, or write a reward function"
    text = answer_in(answer)
    shown = repr(answer if len(answer) <= 80 else f"{answer[:77]}...")
    if not any(map(str.isalnum, text.replace("∞", "infinity"))):
        raise TaskError(f"cannot read the answer {shown}: nothing is in it; {way_out}")
    read = read_answer(text)
    if read.value is None and len(read.text.split()) > _MOST_WORDS:
        raise TaskError(
            f"cannot read the answer {shown}: it has more than {_MOST_WORDS} words; mark the answer itself by `#### `"
        )
    if not _can_be_given(read):
        raise TaskError(f"cannot read the answer {shown} as a formula; {way_out}")
    return read


def _can_be_given(read: ReadAnswer) -> bool:
    """Whether a response can say it: it has letters or digits, divides by no 0, and is read by something."""
    if isinstance(read.value, Formula):
        return not any(part.op in ("div", "over") and exact(part.args[1]) == 0 for part in parts(read.value.node))
    if not isinstance(read.value, Opaque):
        return read.value is not None or any(map(str.isalnum, read.text))
    if "\\" not in read.value.latex and not RELATION.search(read.value.latex):
        return "=" in read.value.latex
    from steadyrl.tasks.symbolic import can_read

    return can_read(read.value.latex)


def answer_in(reference: str) -> str:
    """The answer itself: of a worked answer what its box, its tag or its `####` holds."""
    if len(reference) < 40 and not any(mark in reference for mark in ("#", "\\", "<", "nswer")):
        return reference
    marked = last_box(reference) or last_tag(reference)
    if marked is None:
        marked = reference.rpartition("####")[2] if "####" in reference else behind_last_mark(reference)
    return (reference if marked is None else marked).strip()
