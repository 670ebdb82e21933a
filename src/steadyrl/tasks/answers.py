"""Finds the final answer of a response. Reads no number and computes nothing."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from steadyrl.tasks.plain_text import plain_characters, plain_latex, without_special_tokens
from steadyrl.tasks.prose import first_sentence, last_match, maths_in, number_in

Place = Literal["auto", "boxed", "tag", "last_number"]
Found = Literal["box", "marked", "line"]

_LONGEST_LINE = 2_000  # characters of an answer's line that are read
_NAMES = r"(?:think(?:ing)?|thoughts?|reason(?:ing)?|seed:think|scratchpad)"
_THOUGHT = re.compile(
    rf"(?P<open><\s?{_NAMES}\s?>|\[{_NAMES}\]|<\|begin_of_thought\|>|◁think▷|<\|channel\|>analysis<\|message\|>)"
    rf"|<\s?/\s?{_NAMES}\s?>|\[/{_NAMES}\]|<\|end_of_thought\|>|◁/think▷|<\|channel\|>final<\|message\|>",
    re.IGNORECASE,
)
_BRACE = re.compile(r"\\f?boxed\s{0,3}\{|\\fbox\s{0,3}\{|\\.|[{}]", re.DOTALL)
_BETWEEN_BOXES = re.compile(r"[\s$.]{0,10}(?:,|or|and|&|,\s?(?:or|and))[\s$]{0,10}", re.IGNORECASE)
_TAG = re.compile(r"<\s?(/?)\s?answer\s?>", re.IGNORECASE)
_HASHES = re.compile(r"#{4,}(?=[^\n#]*(?:\n|$))")  # the last of a line
_HEADING = re.compile(
    r"(?:\d+[.)]\s+[A-Za-z]|[*_\s]*(?:step|part|case|method|solution|explanation|conclusion|verification|check|reasoning|"
    r"analysis|approach|calculation|given|summary|final|answer|example|problem|question)\b|.*:\s*$)",
    re.IGNORECASE,
)
_ANSWER = re.compile(r"(?<!\bto )\banswers?\b|\b(?:correct|right|best) (?:option|choice)\b", re.IGNORECASE)
_IS = re.compile(
    r"[\s*_]*(?:\((?:[^()\n]{0,60})\)[\s*_]*)?"
    r"(?:,?\s?(?:to|for|of|in|from|here|then|therefore|thus|now|by|as|at|choice|option|letter)\b[^.!?\n:]{0,100}?)?[\s*_]{0,4}"
    r"(?:[:：=]|\b(?:is|are|was|equals|(?:must|should|would|will|could|can only) be|(?:comes|turns) out to be)\b)"
    r"[\s*_]{0,4}:?[\s*_]{0,4}",
    re.IGNORECASE,
)
_TITLE = re.compile(r"[\s*_]*:?[\s*_]*$")
_TITLE_BEFORE = re.compile(r"(?:^|\n)[\s#*_]*(?:(?:the|my|final|correct)\s)*$", re.IGNORECASE)
_ONLY_DELIMITERS = re.compile(r"[\s$*_`\\\[\](){}#-]*")
_OPTION = re.compile(r"\s*[*_]{0,3}\(?[A-Ja-j][).:][*_]{0,3}\s+\S")
_OPTIONS = re.compile(r"(?:^|\s)\(?A[).:]\s.{1,200}?\s\(?B[).:]\s(?:[^:=]|(?<=\s[A-J]):){0,300}$")  # in one line
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{(?:align|aligned|equation|gather|gathered|split)\*?\}|&(?=\s?=)")
_BULLET = re.compile(r"^\s*(?:[*•]\s+(?=\S)|-\s+(?=[A-Za-z$\\*])|\d{1,2}[.)]\s+(?=\S)|#{1,6}\s+|>\s+)")


@dataclass(frozen=True, slots=True)
class Final:
    """The final answer of a response."""

    text: str
    """The answer, or the sentence that gives it."""
    found: Found
    """In a box, behind a mark such as `the answer is`, or on the last line."""
    is_quoted: bool = False
    """Whether it only repeats a passage of the question: no answer, unless the reference is this passage."""


def final_answer(
    completion: str,
    *,
    place: Place = "auto",
    prompt_text: str = "",
    finish_reason: Literal["stop", "length"] = "stop",
    question: str = "",
) -> str | None:
    """The text of the final answer: of a sentence its number, if it has one. None: the response gives no answer.

    Args:
        completion: The response.
        place: Where the answer must be. `auto` tries four places in this order: the last `\\boxed{}`, the last
            `<answer>`, the text after the last `####` or `answer is`, the last number of the last line.
        prompt_text: The prompt as rendered. If it ends inside a thought, the response begins in one.
        finish_reason: `length` if the response was cut. Then only a closed box, a closed tag, or a marked line
            with a newline behind it counts.
        question: The question. A last line that only repeats a passage of it is no answer.
    """
    final = find_final(completion, place=place, prompt_text=prompt_text, finish_reason=finish_reason, question=question)
    if final is None or final.is_quoted:
        return None
    if final.found == "box":
        return final.text
    plain = plain_latex(plain_characters(final.text))
    if not any(map(str.isdigit, plain)) or maths_in(final.text) is not None:
        return final.text
    return number_in(plain)


def find_final(
    completion: str, *, place: Place, prompt_text: str, finish_reason: Literal["stop", "length"], question: str
) -> Final | None:
    """Like `final_answer`, but of a sentence the whole sentence, and where it was found."""
    text = without_special_tokens(without_thoughts(completion, begins_in_thought=ends_in_thought(prompt_text)))
    text = _ENVIRONMENT.sub(" ", text)
    is_cut = finish_reason == "length"
    if place == "last_number":
        return None if is_cut else _on_last_line(text, question)
    if place in ("auto", "boxed"):
        boxed = last_box(text)
        if boxed is not None or place == "boxed":
            return Final(boxed, "box") if boxed else None
    tagged = last_tag(text)
    if tagged is not None or place == "tag":
        return Final(tagged, "marked") if tagged and len(tagged) <= _LONGEST_LINE else None
    marked = behind_last_mark(text, must_be_closed=is_cut)
    if marked is not None:
        return None if marked.rstrip(" *_$").endswith("?") else Final(marked, "marked")
    return None if is_cut else _on_last_line(text, question)


def ends_in_thought(prompt: str) -> bool:
    """Whether the last tag of a thought in a prompt opens one."""
    last = last_match(_THOUGHT, prompt)
    return last is not None and last.group("open") is not None


def without_thoughts(text: str, *, begins_in_thought: bool = False) -> str:
    """Text outside its thoughts. A closing tag without an opening one makes everything before it a thought."""
    kept: list[str] = []
    inside, start = begins_in_thought, 0
    for match in _THOUGHT.finditer(text):
        if match.group("open") is None:
            kept = kept if inside else []
            inside, start = False, match.end()
        elif not inside:
            kept.append(text[start : match.start()])
            inside = True
    if not inside:
        kept.append(text[start:])
    return "\n\n".join(kept)


def last_box(text: str) -> str | None:
    """What the last `\\boxed{}` holds; empty if it is not closed; None if there is no box, or only empty ones.

    Boxes that are joined by a comma, `or` or `and` count as one.
    """
    closed, unclosed = _boxes(text)
    if not closed or (unclosed and unclosed[-1] > closed[-1][0]):
        return "" if unclosed else None
    contents, start = [], len(text)
    for opening, inner, end in reversed(closed):
        if contents and not _BETWEEN_BOXES.fullmatch(text[end:start][:40] if start - end <= 40 else ""):
            break
        contents.append(text[inner : end - 1])
        start = opening
    return " , ".join(reversed(contents))


def _boxes(text: str) -> tuple[list[tuple[int, int, int]], list[int]]:
    """Opening, inside and end of each closed box that is in no closed box; the openings of those not closed."""
    stack: list[tuple[int, int] | None] = []
    closed: list[tuple[int, int, int]] = []
    for match in _BRACE.finditer(text):
        sign = match.group()
        if sign == "}":
            opened = stack.pop() if stack else None
            if opened is not None and text[opened[1] : match.start()].strip():
                while closed and closed[-1][0] > opened[0]:
                    closed.pop()
                closed.append((*opened, match.end()))
        elif sign == "{":
            stack.append(None)
        elif sign.endswith("{") and len(sign) > 2:
            stack.append((match.start(), match.end()))
    return closed, [opened[0] for opened in stack if opened is not None]


def last_tag(text: str) -> str | None:
    """The text between the last `<answer>` and its `</answer>`; empty if it is not closed; None without a tag."""
    opening = closing = None
    for match in _TAG.finditer(text):
        if match.group(1):
            closing = (
                match if opening is not None and (closing is None or closing.start() < opening.start()) else closing
            )
        else:
            opening = match
    if opening is None:
        return None
    if closing is None or closing.start() < opening.start():
        return ""
    return text[opening.end() : closing.start()].strip()


def behind_last_mark(text: str, *, must_be_closed: bool = False) -> str | None:
    """The sentence behind the last `####` or `answer is`; None if there is none.

    With `must_be_closed` a newline must follow it.
    """
    for end in _marks(text):
        line = _line_behind(text, end)
        if line is None:
            continue
        sentence, line_end = line
        if must_be_closed and text.find("\n", line_end) < 0:
            continue
        return sentence
    return None


def _marks(text: str) -> Iterator[int]:
    """Where the marks end, the last one first."""
    hashes = [match.end() for match in _HASHES.finditer(text)]
    answers = [match.end() for match in _ANSWER.finditer(text)]
    for position in sorted(hashes + answers, reverse=True):
        if text[position - 1] == "#":
            line = text[position : _end_of_line(text, position)]
            if line.strip() and not (_HEADING.match(line) and text[position + len(line) :].strip()):
                yield position
            continue
        if (match := _IS.match(text, position, position + 240)) is not None:
            yield match.end()
        elif _TITLE.fullmatch(text[position : _end_of_line(text, position)][:40]):
            start = max(0, position - 60)
            if _TITLE_BEFORE.search(
                text[start:position].rpartition(" ")[0] + " " if " " in text[start:position] else ""
            ):
                yield _end_of_line(text, position)


def _end_of_line(text: str, position: int) -> int:
    end = text.find("\n", position)
    return len(text) if end < 0 else end


def _line_behind(text: str, position: int) -> tuple[str, int] | None:
    """The rest of the line, or if that is empty the next line with something in it; its first sentence, its end."""
    for _ in range(6):
        end = _end_of_line(text, position)
        line = text[position : min(end, position + _LONGEST_LINE)]
        if not _ONLY_DELIMITERS.fullmatch(line):
            return first_sentence(line.strip()), end
        if end == len(text):
            return None
        position = end + 1
    return None


def _on_last_line(text: str, question: str) -> Final | None:
    """The last line, unless it asks, repeats the question, or ends a column of numbers."""
    lines = _last_lines(text)
    if not lines:
        return None
    line = lines[0].strip()[-_LONGEST_LINE:]
    is_option = _OPTION.match(line) is not None
    if _is_column(lines) or _OPTIONS.search(line) or (is_option and len(lines) > 1 and _OPTION.match(lines[1])):
        return None
    if line.rstrip(" *_$\"')").endswith("?"):
        return None
    is_quoted = bool(question) and (
        (not is_option and _is_quoted(line, question)) or (len(lines) > 1 and _is_passage(text, question))
    )
    return Final(_BULLET.sub("", line, count=1), "line", is_quoted)


def _last_lines(text: str) -> list[str]:
    """The last three lines with a letter or a digit, the last one first."""
    found: list[str] = []
    end = len(text)
    while end > 0 and len(found) < 3:
        start = text.rfind("\n", 0, end) + 1
        if any(map(str.isalnum, text[start:end])):
            found.append(text[start:end])
        end = start - 1
    return found


def _is_column(lines: list[str]) -> bool:
    """Whether the last three lines are different numbers: candidates, not an answer."""
    return len(lines) == 3 and len({line.strip() for line in lines}) == 3 and all(map(_is_bare_number, lines))


def _is_bare_number(line: str) -> bool:
    return re.fullmatch(r"[\s*_]*(?:-\s+)?-?[\d.,]{1,40}[\s*_]*", line) is not None


def _words(text: str) -> list[str]:
    return re.findall(r"\w+(?:[.,]\d+)*|[^\w\s]", text.casefold())


def _is_passage(text: str, question: str) -> bool:
    """Whether the question contains a text of three words or more."""
    if len(text) > len(question) + _LONGEST_LINE:
        return False
    words = [word for word in _words(text) if word[0].isalnum()]
    return len(words) >= 3 and f" {' '.join(words)} " in _spaced(question)


def _spaced(text: str) -> str:
    return f" {' '.join(word for word in _words(text) if word[0].isalnum())} "


def _is_quoted(line: str, question: str) -> bool:
    """Whether a line is a passage of the question, or four words around its last number are."""
    if _is_passage(line, question):
        return True
    words, asked = _spaced(line).split(), _spaced(question)
    numbers = [place for place, word in enumerate(words) if word[0].isdigit()]
    if not numbers:
        return False
    start, end = numbers[-1], numbers[-1] + 1
    while start > 0 and end - start < 4 and f" {' '.join(words[start - 1 : end])} " in asked:
        start -= 1
    while end < len(words) and end - start < 4 and f" {' '.join(words[start : end + 1])} " in asked:
        end += 1
    return end - start >= 4
