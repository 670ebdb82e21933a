"""One spelling for the many ways to write the same characters: Unicode, Markdown and LaTeX."""

import re
import unicodedata

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_CHARACTERS = str.maketrans(
    {
        "−": "-", "‐": "-", "‑": "-", "–": "-", "﹣": "-", "－": "-", "⁄": "/", "∕": "/",
        "×": "*", "⋅": "*", "·": "*", "∙": "*", "∗": "*", "•": "*", "✕": "*", "✖": "*",
        "π": "\\pi ", "∞": "\\infty ", "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "±": "\\pm ",
        "∪": "\\cup ", "√": "\\sqrt ", "°": " degrees ", "º": " degrees ", "→": "=", "⇒": "=",
        "٫": ".", "٬": ",", "。": ".", "’": "'", "‘": "'", "“": '"', "”": '"', "′": "'",
    }
)  # fmt: skip
_RUNS_OF_SUPERSCRIPTS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+")
_RUNS_OF_SUBSCRIPTS = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_VULGAR_FRACTION = re.compile("[¼-¾⅐-⅞]")

_SIZES = re.compile(
    r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits|boxed|fbox|tiny|small|large|Large|"
    r"LARGE|huge|Huge|normalsize|bf|it|rm)(?![A-Za-z])|\\(?:text)?color\s?\{[A-Za-z!0-9]{1,20}\}"
)
_WORDS_IN_LATEX = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf|tt)|mbox|operatorname|bm|boldsymbol|underline)\s{0,3}\{([^{}]*)\}"
)
_SPACES_IN_NUMBERS = re.compile(r"(?<=\d)(?:\\[,;:!]|,\\!|\{,\}(?:\\!)?|[\u2009\u202f\u00a0])(?=\d{3}(?!\d))")
_SPACES = re.compile(r"\\[,;:! ]|\\q?quad(?![A-Za-z])|~|[\u00a0\u2000-\u200a\u202f\u3000]")
_DEGREES = re.compile(r"\^\s{0,3}(?:\{\s{0,3}\\circ\s{0,3}\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])")
_SPELLINGS = (
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:cdot|times|ast)(?![A-Za-z])"), "*"),
    (re.compile(r"\\div(?![A-Za-z])"), "÷"),
    (re.compile(r"\\leq(?:slant)?(?![A-Za-z])"), r"\\le"),
    (re.compile(r"\\geq(?:slant)?(?![A-Za-z])"), r"\\ge"),
    (re.compile(r"\\neq(?![A-Za-z])"), r"\\ne"),
    (re.compile(r"\\varnothing(?![A-Za-z])"), r"\\emptyset"),
    (re.compile(r"\\(?:[Rr]ightarrow|implies)(?![A-Za-z])"), "="),
    (re.compile(r"\\(?:lbrace|\{)"), r"\\{"),
    (re.compile(r"\\(?:rbrace|\})"), r"\\}"),
    (re.compile(r"\\(?:%|percent(?![A-Za-z]))"), "%"),
    (re.compile(r"\\\$"), "$"),
    (re.compile(r"\\(?:#|&)"), " "),
)
_MARKUP = re.compile(r"\*{2,3}|_{2,3}|`+|</?(?:b|strong|em|u|center)>")
_END_OF_ROW = re.compile(r"\\\\(?:\[\d{1,3}(?:\.\d)?(?:pt|em|ex|mm)\])?")
_WORD_BEFORE_DIGITS = re.compile(r"(?<=[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af])(?=[-\d$])")
_POWER = re.compile(r"(?<=[\w)])(?:\*\*|\s\*\*\s)(?=[\d(-]|[a-z](?![A-Za-z]))")
_WRAPPERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ('"', '"'), ("'", "'"), ("*", "*"), ("_", "_"))
_FACTORIAL = re.compile(r"[\d)}]!$|(?<![A-Za-z])[a-z]!$")
_PRICE = re.compile(r"\$\s?\$[^$]+\$")
_BLANK = " \t\r\n"
_SPECIAL_TOKENS = re.compile(r"<\|\w{1,30}\|>|</?s>|<(?:eos|bos|pad|end_of_turn)>")


def plain_characters(text: str) -> str:
    """Text with Unicode digits, signs, fractions and exponents written in ASCII or LaTeX.

    For instance `３½ − x²` becomes `3 1/2 - x^{2}`.
    """
    if text.isascii():
        return text
    text = _RUNS_OF_SUPERSCRIPTS.sub(lambda run: f"^{{{run.group().translate(_SUPERSCRIPTS)}}}", text)
    text = _RUNS_OF_SUBSCRIPTS.sub(lambda run: f"_{{{run.group().translate(_SUBSCRIPTS)}}}", text)
    text = _VULGAR_FRACTION.sub(lambda one: " " + unicodedata.normalize("NFKC", one.group()), text)
    text = _SPACES_IN_NUMBERS.sub("", text.translate(_CHARACTERS))
    text = unicodedata.normalize("NFKC", text).translate(_CHARACTERS)
    return _WORD_BEFORE_DIGITS.sub(" ", "".join(map(_ascii_digit, text)))


def _ascii_digit(character: str) -> str:
    """A decimal digit of any script as ASCII; nothing for characters without width."""
    if character.isascii():
        return character
    if unicodedata.category(character) == "Cf":
        return ""
    digit = unicodedata.decimal(character, None)
    return character if digit is None else str(digit)


def plain_latex(text: str) -> str:
    """Text without what LaTeX and Markdown add for the eye: sizes, fonts, spaces, bold."""
    if "\\" in text or "{" in text or "~" in text:
        text = _END_OF_ROW.sub("\n", text)
        text = _SPACES_IN_NUMBERS.sub("", _SIZES.sub(" ", text))
        for _ in range(4):  # a font within a font
            text, count = _WORDS_IN_LATEX.subn(r" \1 ", text)
            if not count:
                break
        text = _SPACES.sub(" ", _DEGREES.sub(" degrees ", text))
        for pattern, spelling in _SPELLINGS:
            text = pattern.sub(spelling, text)
    if "*" in text or "_" in text or "`" in text or "</" in text:
        text = _MARKUP.sub("", _POWER.sub("^", text))
    return text


def unwrapped(text: str) -> str:
    """Text without the delimiters, quotes and punctuation around it."""
    for _ in range(8):
        text = text.lstrip(_BLANK + ",;:").rstrip(_BLANK + ".,;:")
        if text.endswith("!") and not _FACTORIAL.search(text):
            text = text.rstrip("!")
        if _PRICE.fullmatch(text):
            text = text[1:-1]
        for opening, closing in _WRAPPERS:
            inner = text[len(opening) : -len(closing)]
            if inner and text.startswith(opening) and text.endswith(closing) and closing not in inner:
                text = inner
                break
        else:
            return text
    return text


def without_special_tokens(text: str) -> str:
    """Text with a new line for each token that begins or ends a turn."""
    return _SPECIAL_TOKENS.sub("\n", text)


def folded(text: str) -> str:
    """Text for a comparison: case folded, spaces only between words."""
    text = re.sub(r"\s+", " ", text.casefold()).strip(" \"'").rstrip(" .,;:?\"'")
    text = text if _FACTORIAL.search(text) else text.rstrip("!")
    return re.sub(r"(?<!\w) | (?!\w)", "", text).removeprefix("the ")
