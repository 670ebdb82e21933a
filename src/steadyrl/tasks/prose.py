"""The number, the word or the choice that a sentence gives as its answer. Nothing is computed."""

import re
from collections import deque

# one number: a fraction, a date or a time counts as one, thousands may be grouped
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d{1,3}(?:[ ']\d{3})+(?![\d'])|\d{1,3}(?:_\d{3})+(?!\d)|\d+)"
_NUMBER = re.compile(
    r"(?<![\w.])"
    r"(?:\d+(?:[:/.-]\d+){2,}|\d+:\d+|\d+\\frac\{\d+\}\{\d+\}|\d+ \d+/\d+(?![\d/])|\d+/\d+(?![\d/])"
    r"|\\frac\{\d+\}\{\d+\}"
    rf"|(?:{_DIGITS}(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+(?!\w))?(?:\s?[*x]\s?10\s?\^\s?(?:\{{-?\d+\}}|-?\d+))?)(?:\s?%)?"
)
_SIGN = re.compile(r"(?:^|[\s=:(\[*])([-+])\s?[$€£¥]?\s?$")
_DASH = re.compile(r"[A-Za-z]{2,}\s-\s[$€£¥]?\s?$")
_OPERATION_BEFORE = re.compile(
    r"(?:[-+*/÷^<>±√!~]|\\(?:le|ge|ne|pm|sqrt|cup)|[A-Za-z]\(|\bplus|\bminus|\d\s?times|\d\s?x|\d\s?over|\bdivided by|"
    r"\bmultiplied by|\bmod(?:ulo)?|\bthan|(?:\d\s?%?|percent|half|third|quarter|sum|product|difference)\s+of|"
    r"n't|\bnot(?: equal(?: to)?)?|\bnever|\bcannot be|\bneither|\bnor|"
    r"\b(?:all|any|anything|everything) (?:but|except)|"
    r"(?:^|\b(?:is|are|be|was|were|it's) )(?:(?:just|slightly|somewhat|well|far) )?(?:over|under|below|above)|"
    r"\b(?:twice|thrice|double|triple|half)|"
    r"\bsqrt\(?|\b[a-z]\s?\()\s?[$€£¥({\[]{0,2}\s?$",
    re.IGNORECASE,
)
_OPERATION_BEHIND = re.compile(
    r"\s?[)}\]]{0,2}\s?(?:[+*÷^<>±=]|!\s*\S|/(?=\s?[\d(])|-\s?[$€£¥(]?\s?\d|- ?[a-z]\b|\\(?:le|ge|ne|pm)|plus\b|"
    r"minus\b|times\s+\d|x\s?\d|over\s+\d|divided\b|multiplied\b|mod\b|choose\b|factorial\b|squared\b|cubed\b|"
    r"doubled\b|tripled\b|halved\b|more than\b|less than\b|"
    r"and an? (?:half|third|quarter)\b|% of\b|percent of\b|of\s+[$€£¥]?\d)",
    re.IGNORECASE,
)
_GLUED = re.compile(r"(?:[xyzkKMBn]|th|st|nd|rd)(?![A-Za-z])|[A-Za-z]*\d|_|\(|\\")
_ONLY_A_JOINT = re.compile(
    r"[\s)]*(?:[,;|&~]|and|or|vs\.?|versus|to|by|from|with|of|through|into|,\s?(?:and|or))?[\s(]*[-$€£¥]?\s*",
    re.IGNORECASE,
)
_OR = re.compile(
    r"[\s()%.,;]*(?:[A-Za-z°]+[\s,;]+){0,3}[\s,;]*(?:or|vs\.?|versus|otherwise|else|alternatively|possibly|perhaps|maybe|"
    r"unless|(?:could|might|may)(?: also)? be),?\s+(?:[A-Za-z]+\s+){0,3}[-$€£¥]?\s*",
    re.IGNORECASE,
)
_SAME_WORD = re.compile(r"\s?([A-Za-z]+)\s?(?:,|;|,?\s?and)\s{0,3}[$€£¥]?")
_WORD = re.compile(r"\s?([A-Za-z]+)")
_MATH = re.compile(
    r"\$\$([^$]+)\$\$|\$(?![\s$])([^$\n]*[^$\s\\])\$(?!\d)|\\\(((?:[^\\]|\\(?!\)))*)\\\)|\\\[((?:[^\\]|\\(?!\]))*)\\\]"
)
_BECAUSE = (
    r"[,;]?\s(?:because|since|as|so|which|when|where|if(?! not)|given|after|for|that is|i\.e|in total)\b|"
    r"\s\((?!(?:or|and)\b)(?=\D|\d+[^)\w])|\s[—–]\s"
)
_REASON = re.compile(
    rf"{_BECAUSE}|[,;]\s(?!(?:or|and|maybe|perhaps|possibly|otherwise|else|alternatively|unless|but|not|yes|no|true|"
    r"false)\b)(?=[a-z]{2})",
    re.IGNORECASE,
)
_REASON_FOR_WORDS = re.compile(rf"{_BECAUSE}|\s\((?!(?:or|and)\b)", re.IGNORECASE)
_OPENING = re.compile(
    r"(?:(?:that|is|are|exactly|approximately|about|around|roughly|just|only|equal to|simply|therefore|thus|then|"
    r"now|a total of|option|choice|=|≈|~|\\approx)(?![A-Za-z])[\s:]*){1,4}",
    re.IGNORECASE,
)
_SAYS = re.compile(
    r"\s(?:is|are|was|were|be|equals|means)\s|(?:=|:(?!\d))\s?|→|\\(?:Rightarrow|rightarrow|to)(?![A-Za-z])"
)
_BRACKETS = re.compile(r"[(\[][^()\[\],]{1,100},[^()\[\]]{1,100}[)\]]")
_VERDICT = re.compile(r"(yes|no|true|false)\b\s*(?:[,.;:!]|-\s)(.*)", re.IGNORECASE | re.DOTALL)
_OPPOSITE = {"yes": "no", "no": "yes", "true": "false", "false": "true"}
_CHOSEN = re.compile(
    r"(?:\b(?:option|choice|answer|letter)\s+)?\(?\b([A-J])\b\)?(?:\s+(?:is|as)\s+(?:the\s+)?(?:correct|right|best|answer)|\s+is\s+true)|"
    r"\b(?:choose|pick|select|option|choice)\s+(?:option\s+|choice\s+)?\(?([A-J])\b\)?(?=[\s.,:;!]|$)|"
    r"\b(?:so|hence|thus|therefore),?\s+\(?([A-J])\)?[\s.!*]*$"
)


def last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The last match of a pattern."""
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


def number_in(text: str, *, first: bool = False) -> str | None:
    """The number at the end of a sentence, as it is written; with `first`, the number at its beginning.

    None if there is no number. None if it is part of an operation (`5 + 11`, `16 - 0`, `x > 3`), is excluded by the
    words around it (`not 5`, `17 than 16`), or is one of several (`7, 8`, `7 or 8`, `1 2 3`).
    """
    tokens = [match for match in _NUMBER.finditer(text) if not _GLUED.match(text, match.end())]
    if not tokens:
        return None
    place = 0 if first else len(tokens) - 1
    token = tokens[place]
    before, behind = text[max(0, token.start() - 40) : token.start()], text[token.end() : token.end() + 40]
    sign = _SIGN.search(before)
    negative = sign is not None and sign.group(1) == "-" and not _DASH.search(before)
    if sign is not None:
        earlier = before[: sign.start(1)].rstrip()
        if earlier and (earlier[-1].isdigit() or earlier[-1] in ")}]" or re.search(r"(?<![A-Za-z])[a-z]$", earlier)):
            return None
        before = earlier
    if _OPERATION_BEFORE.search(before.rstrip() if not sign else before) and not _DASH.search(before):
        return None
    if _OPERATION_BEHIND.match(behind):
        return None
    for one, other in ((place - 1, place), (place, place + 1)):
        if one >= 0 and other < len(tokens) and _are_joined(text, tokens[one], tokens[other]):
            return None
    return ("-" if negative else "") + token.group()


def _are_joined(text: str, one: re.Match[str], other: re.Match[str]) -> bool:
    """Whether two numbers are named as candidates or operands: `7, 8`, `7 or 8`, `5 from 21`, `70 km, 71 km`."""
    between = text[one.end() : other.start()]
    if len(between) > 60:
        return False
    if _ONLY_A_JOINT.fullmatch(between) or _OR.fullmatch(between):
        return True
    same, next_word = _SAME_WORD.fullmatch(between), _WORD.match(text, other.end())
    return same is not None and next_word is not None and same.group(1).lower() == next_word.group(1).lower()


def maths_in(text: str) -> tuple[str, bool] | None:
    """The last formula between `$` or `\\( \\)`, and whether a number follows it; None if there is none."""
    last = last_match(_MATH, text)
    if last is None:
        return None
    inside = next(group for group in last.groups() if group is not None)
    return inside, any(map(str.isdigit, text[last.end() :]))


def last_brackets(text: str) -> list[str]:
    """The last tuple or interval in a sentence, if it has one."""
    last = last_match(_BRACKETS, text)
    return [] if last is None else [last.group()]


def first_sentence(text: str) -> str:
    """The text up to the first full stop that ends a sentence; the point behind a choice letter does not."""
    start = 3 if re.match(r"\(?[A-Ja-j]\)?[.:)]\s", text) else 0
    for match in re.finditer(r"(?:[.?]|(?<!\d)!|!$)(?=[\s*)\"'$]|$)", text[start : start + 2000]):
        end = start + match.end()
        return (
            text[:end] if not re.match(r"[\s*]*(?:or|and)\b", text[end : end + 20], re.IGNORECASE) else text[: end + 60]
        )
    return text


def without_reason(text: str) -> str:
    """`72 clips, because 48 + 24 = 72` without the reason, if a number is before it."""
    for match in _REASON.finditer(text[:2000]):
        if any(map(str.isdigit, text[: match.start()])):
            return text[: match.start()]
    return text


def without_opening(text: str) -> str:
    """`that exactly 72` without the words before the answer."""
    match = _OPENING.match(text)
    return text[match.end() :] if match else text


def words_in(text: str) -> list[str]:
    """What a sentence may give as its answer in words: itself, its verdict, its choice, what follows its last `is`."""
    found = [text, _REASON_FOR_WORDS.split(text, maxsplit=1)[0]]
    if (verdict := _VERDICT.match(text.lstrip("*_ "))) is not None:
        opposite = _OPPOSITE[verdict.group(1).lower()]
        if not re.match(rf"[\s,]*(?:or\s+)?{opposite}\b", verdict.group(2), re.IGNORECASE):
            found.append(verdict.group(1))
    chosen = {match.group(1) or match.group(2) or match.group(3) for match in _CHOSEN.finditer(text)}
    if len(chosen) == 1 and not re.search(r"\bnot\b|n't", text):
        found.append(chosen.pop())
    last = last_match(_SAYS, text)
    if last is not None:
        found.append(text[last.end() :])
    return found
