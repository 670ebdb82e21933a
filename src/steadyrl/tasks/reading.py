"""Reading the text of an answer, a reference or a response's."""

import re
from fractions import Fraction

from steadyrl.tasks.answer_values import Choice, Equation, Formula, Number, Opaque, ReadAnswer, Several
from steadyrl.tasks.formula_values import exact, is_literal, is_value
from steadyrl.tasks.formulas import PLAIN_NAMES, Node, NotAFormula, parse, symbols
from steadyrl.tasks.plain_text import folded, plain_characters, plain_latex, unwrapped

_LONGEST = 2_000  # characters of an answer that are read as anything but text
_MOST_ITEMS = 100

PLAIN_NUMBER = re.compile(r"-?[0-9]{1,18}(?:\.[0-9]{1,18})?")
# a time, a date, `3rd`, a number of another base, `H2O`
_LABEL = re.compile(
    r"\d+(?::\d+)+(?:\.\d+)?(?: ?[ap]\.?m)?|\d+(?:[-/]\d+){2,}|\d+(?:\.\d{1,2}){2,}|\d+(?:st|nd|rd|th)|"
    r"(?!\d{1,3}(?:_\d{3})+$)[\dA-F]+_\d+|[A-Za-z]+\d\w*",
    re.IGNORECASE,
)
PLAIN_WORDS = re.compile(r"[A-Za-z]{2,30}(?: [A-Za-z]{2,30}){0,5}")
_CHOICE = re.compile(r"(?:(?:option|choice|letter|answer)\s+)?[(\[]?([A-Za-z])[)\].:]{0,2}", re.IGNORECASE)
_CHOICE_AND_MORE = re.compile(r"(?:\(([A-Ja-j])\)[.:]?\s{0,5}|([A-Ja-j])\)\s{0,5}|([A-J])[.:]\s{1,5})(\S.*)", re.DOTALL)
_OTHER_CHOICE = re.compile(r"(?:^|\s)(?:\([A-J]\)|[A-J][).:])(?:\s|$)")
_HEDGE = re.compile(r"(?:=|\\approx|~|≈|approximately|about|around|roughly|exactly|only|either)(?![a-z])\s{0,5}", re.I)
_CURRENCY = re.compile(r"(-?)\s?(?:(US|A|C|AU|CA|NZ|HK)?\$|[€£¥₹])\s?(?=[-+]?[.0-9])")
_CURRENCY_BEHIND = re.compile(r"(?<=\d)\s?(?:[$€£¥₹]|USD|EUR|GBP|dollars? and|\\?\$)$")
_THOUSANDS = re.compile(r"(?<![\w.,'])(\d{1,3})((?:,\d{3})+|(?: \d{3})+|(?:'\d{3})+)(?![\d,'])(?! \d)")
_INDEX = re.compile(r"_ ?\{ ?(\w+) ?\}")
_MEMBER = re.compile(r"^[A-Za-z] ?\\in(?![A-Za-z]) ?")
_UNDERSCORES = re.compile(r"(?<=\d)_(?=\d{3})")
_MIXED = re.compile(r"(?<![\d/.^])(\d{1,9})\s{1,3}(?:(\d{1,9})\s?/\s?(\d{1,9})(?![\d/])|(?=\\frac))")
_TIMES_X = re.compile(r"(?<=\d)\s?[xX]\s?(?=10\s?\^|\d)")
_QUANTITY = re.compile(r"((?:[^A-Za-z%\\]|\\(?:frac|sqrt|pi)(?![A-Za-z]))*)\s?([A-Za-z%].*)", re.DOTALL)
_FORMULA_WITH_UNIT = re.compile(
    r"(.*[\d)}a-z])(?: ([A-Za-z]{2,12}|[A-Za-z]{1,12}/[A-Za-z]{1,12})|(?<=\d)([A-Za-z]{1,12}/[A-Za-z]{1,12}))"
    r"(?: ?\^ ?\{?[23]\}?)?",
    re.DOTALL,
)
_DOTTED_THOUSANDS = re.compile(r"(?<![\w.,])\d{1,3}(?:(?:\.\d{3})+,\d{1,2}|(?:\.\d{3}){2,})(?![\w.,])")
_REPEATING = re.compile(r"(\d{0,9})\.(\d{0,9})\\overline ?\{(\d{1,9})\}")
_NO_UNIT = re.compile(
    r"(?:or|and|to|not|plus|minus|times|over|divided|multiplied|mod|modulo|choose|factorial|squared|cubed|less|more|than|"
    r"from|of|if|vs|versus|but|without|with|hundredths?|tenths?|thousandths?|halves|thirds?|quarters?|fifths?|k|"
    r"doubled|tripled|halved|twice|thrice|otherwise|else|alternatively|possibly|perhaps|maybe|unless|"
    r"th|st|nd|rd|e|i|pi|is|was|are|does|equals)(?![a-z])"
)
_SCALES = {
    "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12,
}  # fmt: skip
_UNITS = {
    "$": "dollar", "dollar": "dollar", "dollars": "dollar", "usd": "dollar", "€": "euro", "euro": "euro",
    "euros": "euro", "£": "pound", "¥": "yen", "yen": "yen", "cent": "cent", "cents": "cent",
    "mm": "mm", "cm": "cm", "m": "m", "km": "km", "millimeters": "mm", "centimeters": "cm", "centimetres": "cm",
    "meter": "m", "meters": "m", "metres": "m", "kilometers": "km", "kilometres": "km", "mile": "mile",
    "miles": "mile", "feet": "foot", "foot": "foot", "ft": "foot", "inch": "inch", "inches": "inch", "in": "inch",
    "mph": "mile/h",
    "hr": "h", "hrs": "h", "sec": "s", "mg": "mg", "g": "g", "kg": "kg", "gram": "g", "grams": "g",
    "kilograms": "kg",
    "second": "s", "seconds": "s", "s": "s", "minute": "min", "minutes": "min", "min": "min", "hour": "h",
    "hours": "h", "h": "h", "day": "day", "days": "day", "week": "week", "weeks": "week", "year": "year",
    "years": "year", "degree": "degree", "degrees": "degree", "ml": "ml", "l": "l", "liters": "l", "litres": "l",
}  # fmt: skip
_NAMES_TO_20 = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_NAMES_OF_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_NAMED = {name: number for number, name in enumerate(_NAMES_TO_20.split())}
_NAMED |= {name: 10 * number for number, name in enumerate(_NAMES_OF_TENS.split(), 2)}
_UNIT_LETTERS = frozenset("mghsLlNJWVAKCF")
_NAME = re.compile(r"[^-+*/^÷<>\d][^-+*/^÷<>]{0,60}")
_BETWEEN_ITEMS = re.compile(r"[(\[{]|[)\]}]|[,;]|(?<![A-Za-z])(?:and|or)(?![A-Za-z])")
_EQUALS = re.compile(r"[(\[{]|[)\]}]|=+")
RELATION = re.compile(r"<=|>=|!=|\\(?:le|ge|ne|in|approx|equiv|sim|subset|to)(?![A-Za-z])|[<>]")
_COMMANDS = re.compile(r"\\(?:begin|end)\{[a-z*]+\}|\\[A-Za-z]+")
_MATRIX = re.compile(r"\\begin\{([pbvBV]?matrix)\}(.*)\\end\{\1\}", re.DOTALL)
_ARRAY = re.compile(r"[(\[]? ?\\begin\{array\} ?\{[lcr| ]{1,40}\}(.*)\\end\{array\} ?[)\]]?", re.DOTALL)


def read_answer(text: str) -> ReadAnswer:
    """Reads the text of an answer; never fails. What is neither number, formula nor list is words."""
    if PLAIN_NUMBER.fullmatch(text):
        return ReadAnswer(text, Number(Fraction(text), percent=False, unit="", literal=True, node=None))
    if len(text) > _LONGEST:
        return ReadAnswer(folded(text), None)
    clean = plain_latex(plain_characters(text))
    clean = _INDEX.sub(r"_\1", re.sub(r"[ \t]+", " ", clean))
    return _read(clean, depth=0) if len(clean) <= 2 * _LONGEST else ReadAnswer(folded(clean), None)


def _read(text: str, depth: int) -> ReadAnswer:
    """Reads cleaned text."""
    text = _MEMBER.sub("", unwrapped(text))
    name = folded(text)
    if (named := _named_number(name)) is not None:
        return ReadAnswer(name, Number(named, percent=False, unit="", literal=True, node=None))
    if (
        not text
        or depth > 6
        or _LABEL.fullmatch(text)
        or (PLAIN_WORDS.fullmatch(text) and text.lower() not in PLAIN_NAMES)
    ):
        return ReadAnswer(name, None)
    choice = _read_choice(text, depth)
    if choice is not None:
        return ReadAnswer(f"choice {choice.letter}" if choice.more is None else name, choice)
    text = _UNDERSCORES.sub("", _HEDGE.sub("", text, count=1) if _HEDGE.match(text) else text)
    text = _DOTTED_THOUSANDS.sub(lambda match: match.group().replace(".", "").replace(",", "."), text)
    if not text:
        return ReadAnswer(name, None)
    value = _read_several(text, depth) or _read_equation(text, depth) or _read_number(text)
    if value is None and _looks_like_latex(text):
        value = Opaque(text)
    return ReadAnswer(name, value)


def _named_number(name: str) -> Fraction | None:
    """A number below 100 in words: `seven`, `twenty-one`."""
    tens, _, ones = name.replace("-", " ").partition(" ")
    first, second = _NAMED.get(tens), _NAMED.get(ones) if ones else 0
    if first is None or second is None or (ones and not (first >= 20 and 0 < second < 10)):
        return None
    return Fraction(first + second)


def _read_choice(text: str, depth: int) -> Choice | None:
    if (match := _CHOICE.fullmatch(text)) is not None:
        return Choice(match.group(1).casefold(), None)
    if (match := _CHOICE_AND_MORE.fullmatch(text)) is not None:
        letter = match.group(1) or match.group(2) or match.group(3)
        if not _OTHER_CHOICE.search(match.group(4)):
            return Choice(letter.casefold(), _read(match.group(4), depth + 1))
    return None


def _read_several(text: str, depth: int) -> Several | None:
    """A matrix, a union, something in brackets, or items between commas, `and` or `or`."""
    if (match := _MATRIX.fullmatch(text) or _ARRAY.fullmatch(text)) is not None:
        rows = [row.split("&") for row in match.groups()[-1].split("\n") if row.strip()]
        items = tuple(_read(item, depth + 1) for row in rows for item in row)
        return Several((ReadAnswer(f"{len(rows)} rows", None), *items), "matrix")
    if "\\cup" in text:
        return Several(tuple(_read(part, depth + 1) for part in text.split("\\cup")[:_MOST_ITEMS]), "union")
    if text.startswith("\\{") and text.endswith("\\}"):
        items = _items(text[2:-2], depth)
        return Several(items if items else (_read(text[2:-2], depth + 1),), "{}")
    if text[0] in "([" and text[-1] in ")]" and _closes_at_end(text):
        items = _items(text[1:-1], depth)
        return Several(items, text[0] + text[-1]) if items else None
    if "\\pm" in text or "\\mp" in text:
        return _plus_and_minus(text, depth)
    bare = _THOUSANDS.sub(lambda match: match.group(1) + re.sub(r"\D", "", match.group(2)), text)
    items = _items(bare, depth)
    if items and all(item.value is not None and item.text for item in items):
        return Several(items, "")
    return None


def _plus_and_minus(text: str, depth: int) -> Several:
    up = text.replace("\\pm", "+").replace("\\mp", "-")
    down = text.replace("\\pm", "-").replace("\\mp", "+")
    return Several((_read(up, depth + 1), _read(down, depth + 1)), "")


def _closes_at_end(text: str) -> bool:
    """Whether the first bracket is closed by the last character."""
    level = 0
    for position, character in enumerate(text):
        level += (character in "([{") - (character in ")]}")
        if level == 0:
            return position == len(text) - 1
    return False


def _items(text: str, depth: int) -> tuple[ReadAnswer, ...]:
    """The items of a list; none if there is no comma, semicolon, `and` or `or` outside brackets."""
    found = [part for part in _split(text, _BETWEEN_ITEMS) if part.strip()]
    if not 1 < len(found) <= _MOST_ITEMS:
        return ()
    return tuple(_read(part, depth + 1) for part in found)


def _split(text: str, separator: re.Pattern[str]) -> list[str]:
    """The text between separators outside all brackets."""
    found, level, start = [], 0, 0
    for match in separator.finditer(text):
        sign = match.group()
        if sign in "([{":
            level += 1
        elif sign in ")]}":
            level -= 1
        elif level == 0:
            found.append(text[start : match.start()])
            start = match.end()
    return [*found, text[start:]]


def _read_equation(text: str, depth: int) -> Equation | Opaque | None:
    """`x = 5`, `5 + 11 = 16`, `Total = 72`: the last side, with the name of the first; or a relation."""
    if RELATION.search(text):
        return Opaque(text) if _looks_like_latex(text) else None
    sides = [side.strip() for side in _split(text, _EQUALS)]
    if len(sides) < 2 or not sides[0] or not sides[-1]:
        return None
    first, last = sides[0], sides[-1]
    side = _formula(first)
    is_algebra = side is not None and symbols(side) and side.op != "sym"
    if is_algebra and (not _NAME.fullmatch(first) or len(sides) > 2):
        return Opaque(text)
    return Equation(first.replace(" ", ""), _read(last, depth + 1))


def _formula(text: str) -> Node | None:
    try:
        return parse(text)
    except NotAFormula:
        return None


def _read_number(text: str) -> Number | Formula | None:
    """A number with or without its unit, or a formula."""
    text, unit = _without_currency(text)
    if (match := _FORMULA_WITH_UNIT.fullmatch(text)) is not None:
        names = [_UNITS.get(name.lower(), "") for name in (match.group(2) or match.group(3)).split("/")]
        if all(names):
            text, unit = match.group(1), "/".join(names)
    text = _REPEATING.sub(_repeating, text)
    text = _THOUSANDS.sub(lambda match: match.group(1) + re.sub(r"\D", "", match.group(2)), text)
    text = _MIXED.sub(_proper, text)
    text = _TIMES_X.sub("*", text)
    node = None if _has_unit(text) else _formula(text)
    scale = 1
    if node is None:
        match = _QUANTITY.fullmatch(text)
        words = match.group(2).strip().casefold() if match else ""
        if match is None or _NO_UNIT.match(words) or not re.search(r"\d|\\pi", match.group(1)):
            return None
        node = _formula(match.group(1))
        scale, words = _scale(words)
        if node is None or re.search(
            r"[\d=+*/\\]|(?<![a-z])(?:or|and|plus|minus|times|not|wrong|incorrect)(?![a-z])|n't",
            words.partition("^")[0],
        ):
            return None
        unit = unit or _UNITS.get(words.split()[0] if words else "", "")
        if re.match(r"percent|pct|%", words):
            node, unit = Node("percent", (node,)), ""
    value = exact(node)
    if value is None or not is_value(node):
        return Formula(node)
    percent = node.op == "percent" or (node.op == "neg" and node.args[0].op == "percent")
    return Number(value * scale, percent=percent, unit=unit, literal=is_literal(node), node=node)


def _proper(match: re.Match[str]) -> str:
    """`3 1/2` as a mixed number; left as it is if the fraction is not below 1."""
    whole, top, bottom = match.groups()
    if top is None:
        return whole
    return f"{whole}\\frac{{{top}}}{{{bottom}}}" if int(top) < int(bottom) else match.group()


def _repeating(match: re.Match[str]) -> str:
    """`0.1\\overline{6}` as a fraction."""
    whole, fixed, cycle = match.groups()
    scale = 10 ** len(fixed)
    value = Fraction(int((whole + fixed) or 0), scale) + Fraction(int(cycle), scale * (10 ** len(cycle) - 1))
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def _scale(words: str) -> tuple[int, str]:
    """The factor of `million`, and the words behind it."""
    first, _, rest = words.partition(" ")
    return (_SCALES[first], rest.strip()) if first in _SCALES else (1, words)


def _without_currency(text: str) -> tuple[str, str]:
    """The text without `$` or `€`, and which it was."""
    if (match := _CURRENCY.match(text)) is not None:
        return match.group(1) + text[match.end() :], _symbol(match.group())
    if (match := _CURRENCY_BEHIND.search(text)) is not None:
        return text[: match.start()], _symbol(match.group())
    return text, ""


def _symbol(text: str) -> str:
    return next((_UNITS.get(sign, "") for sign in text if sign in "$€£¥"), "")


def _has_unit(text: str) -> bool:
    """Whether letters behind a number are a unit, not variables: `12 cm`, `5 m`, `16km`, but not `5x`."""
    match = re.fullmatch(r"[-+]?[\d.,/ ]*\d(\s?)([A-Za-z]+)(?:\^?[{]?[23][}]?|/[A-Za-z]+)?", text)
    if match is None:
        return False
    space, word = match.groups()
    if len(word) == 1:
        return bool(space) and word in _UNIT_LETTERS
    return word.lower() not in PLAIN_NAMES and (bool(space) or len(word) > 3 or word.lower() in _UNITS)


def _looks_like_latex(text: str) -> bool:
    """Whether text that is no number was meant as a formula: a command in it, or no word of two letters."""
    words = set(re.findall(r"[^\W\d_]{2,}|[^\W\d_\x00-\x7f]", _COMMANDS.sub(" ", text).casefold()))
    return not words - {"or", "and", "if"} and ("\\" in text or not words)
