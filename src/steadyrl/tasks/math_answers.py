"""The reward `math_verify`: whether the final answer of a response equals the reference."""

from collections.abc import Sequence
from typing import Literal

from steadyrl.tasks.answer_values import Choice, Equation, Formula, Number, ReadAnswer, Several
from steadyrl.tasks.answers import Final, Place, behind_last_mark, find_final
from steadyrl.tasks.equality import is_right
from steadyrl.tasks.plain_text import plain_characters, plain_latex, unwrapped
from steadyrl.tasks.prose import last_brackets, maths_in, number_in, without_opening, without_reason, words_in
from steadyrl.tasks.reading import read_answer
from steadyrl.tasks.references import Reference, answer_in, read_reference
from steadyrl.tasks.restated import is_restated


def math_verify_reward(
    answer: str | Sequence[str],
    completion: str,
    *,
    place: Place = "auto",
    prompt_text: str = "",
    finish_reason: Literal["stop", "length"] = "stop",
    question: str = "",
) -> float:
    """1 if the final answer of the response equals the reference, or one of several accepted references, else 0.

    Args:
        answer: The reference, or all references that are accepted.
        completion: The response.
        place: Where the answer must be; see `final_answer`, also for the three arguments below.
        prompt_text: The prompt as rendered.
        finish_reason: `length` if the response was cut.
        question: The question. A formula that only repeats one of the question is no answer.

    Raises:
        TaskError: a reference cannot be read.
    """
    references = [read_reference(one) for one in ([answer] if isinstance(answer, str) else answer)]
    final = find_final(completion, place=place, prompt_text=prompt_text, finish_reason=finish_reason, question=question)
    if final is None:
        return 0.0
    return float(any(_gives(final, reference, place, question) for reference in references))


def right_responses(answer: str, *, place: Place = "auto") -> list[tuple[str, str]]:
    """The usual forms of a right response where the answer may be in `place`, each with its name."""
    text = unwrapped(answer_in(answer))
    boxed, tagged = f"\\boxed{{{text}}}", f"<answer>{text}</answer>"
    bare = {"auto": text, "boxed": boxed, "tag": tagged, "last_number": text}[place]
    said = f"It comes to {text}." if place == "last_number" else f"The answer is {bare}."
    forms = [("bare", bare), ("in a sentence", said), ("after thoughts", f"<think>\nLet me think.\n</think>\n\n{bare}")]
    if place == "auto":
        forms.insert(1, ("boxed", boxed))
    return forms


def _gives(final: Final, reference: Reference, place: Place, question: str) -> bool:
    """Whether what was found says what the reference says."""
    if final.is_quoted:  # one of the texts to choose from, word by word
        return reference.value is None and read_answer(final.text).text == reference.text
    if final.found == "box":
        said = behind_last_mark(plain_latex(final.text)) if "nswer" in final.text else None
        answers = [read_answer(said or final.text)]
        if reference.value is None or isinstance(reference.value, Choice):
            answers += map(read_answer, words_in(plain_latex(final.text).strip())[1:])
    else:
        answers = _said(final, reference, only_number=place == "last_number")
    return any(
        is_right(reference, one, literal=final.found == "line") and not is_restated(one, reference, question)
        for one in answers
    )


def _said(final: Final, reference: Reference, *, only_number: bool) -> list[ReadAnswer]:
    """What a sentence may be meant to answer: the sentence itself, else its formula, its number or its words."""
    text = without_reason(without_opening(final.text)) if final.found == "marked" else final.text
    text = text.rstrip(" !")  # no factorial at the end of a sentence
    whole, maths = read_answer(text), maths_in(text)
    if isinstance(reference.value, Choice) or reference.value is None:
        if only_number:
            return []
        more = reference.value.more if isinstance(reference.value, Choice) else None
        return [*map(read_answer, words_in(text)), *(_said(final, more, only_number=False) if more is not None else [])]
    if maths is not None and not maths[1] and not isinstance(whole.value, Number | Several | Formula | Choice):
        return [read_answer(maths[0])]
    is_read = whole.value is not None and not (isinstance(whole.value, Equation) and whole.value.answer.value is None)
    if is_read and not only_number:
        return [whole]
    if isinstance(reference.value, Number):
        plain = plain_latex(plain_characters(text))
        starts = final.found == "marked" and "=" not in plain and plain.lstrip(" -+$€£¥(")[:1].isdigit()
        number = number_in(plain, first=starts)
        return [] if number is None else [read_answer(number)]
    return [whole, *map(read_answer, (*words_in(text)[1:], *last_brackets(text)))]
