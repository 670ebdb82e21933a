"""The table of objectives in docs/objective.md: `python -m steadyrl.recipe.table docs/objective.md` writes it anew."""

import sys
from pathlib import Path

from steadyrl.options.source import Declared, declared
from steadyrl.recipe.variants import written

BEGIN, END = "<!-- the table is printed from the code by `make docs` -->\n", "<!-- end of the table -->\n"


def with_table(page: str) -> str:
    """The page with the table of today between its two marks.

    Raises:
        ValueError: the page has no such marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page needs the marks {BEGIN!r} and {END!r}, in this order")
    return "".join([before, BEGIN, "\n", *_table(), "\n", END, after])


def _table() -> list[str]:
    head = "| `name` | class | what it is | denominator | Â divided by the deviation | options |\n"
    return [
        head,
        "|---|---|---|---|---|---|\n",
        *(_row(name, one) for name, one in sorted(declared("objective").items())),
    ]


def _row(name: str, one: Declared) -> str:
    first, *others = one.meaning.split("\n\n")
    formula = [text.strip() for text in others if text.strip().startswith("J = ")][:1]
    cells = [f"`{name}`", f"`{one.name}`", " ".join([*first.split(), *(f"`{text}`" for text in formula)])]
    for constant in ("mean", "normalised"):
        option = one.options[constant]
        value = "yes" if option.default is True else f"`{option.default}`" if option.default else "–"
        cells.append("an option" if option.settable else value)
    told = (f"`{key} = {written(option.default)}`" for key, option in one.options.items() if option.settable)
    cells.append(", ".join(told) or "–")
    return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |\n"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(with_table(page.read_text(encoding="utf-8")), encoding="utf-8")
