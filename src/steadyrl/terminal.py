"""Text on its way to a terminal or a page: what would steer or deceive the reader's screen is spelled out.

A response, a data row and a verifier's message are hostile text. Raw, they could move the cursor, colour or erase
lines, reverse the reading order, or hide characters.
"""

import re
import sys
import unicodedata

_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode's categories of invisible characters: controls, formats such as bidi overrides and zero-width characters,
halves of surrogate pairs, and separators of lines and paragraphs."""
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Letters and symbols that look like nothing."""
_PLAIN = re.compile(r"[ -~]*")


def visible(text: str, *, lines: bool = False) -> str:
    """The text with every unseen character as its escape, such as `\\x1b`, `\\u202e` or `\\U000e0041`.

    A backslash that was written as such stays as it is. For instance, `visible("a\\x1b[2Jb")` is `a\\\\x1b[2Jb`.

    Args:
        lines: keep line breaks and tabs, where the text may take several lines.
    """
    if _PLAIN.fullmatch(text):
        return text
    return "".join(character if is_visible(character, lines=lines) else escape(character) for character in text)


def is_visible(character: str, *, lines: bool) -> bool:
    """Whether a character may reach the screen as it is."""
    if lines and character in "\n\t":
        return True
    return character not in _BLANK and unicodedata.category(character) not in _UNSEEN


def escape(character: str) -> str:
    """A character's escape in Python's notation."""
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def tell(message: str, *, lines: bool = False) -> None:
    """Print a line, or several where `lines`, to standard error, above the progress bar where there is one."""
    print(f"steadyrl: {visible(message, lines=lines)}", file=sys.stderr, flush=True)
