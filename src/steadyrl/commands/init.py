"""`steadyrl init`."""

import argparse
import contextlib
import json
import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

from steadyrl.errors import UserError
from steadyrl.recipe import resolve
from steadyrl.recipe.shipped import find
from steadyrl.tasks.sources import read_source

FIELDS = {
    "model": ("model.path", "folder of your model, or its name on the hub", ""),
    "data": ("task.path", "file of question/answer pairs, or a dataset on the hub", ""),
    "question-column": ("task.question_column", "column of the questions", "question"),
    "answer-column": ("task.answer_column", "column of the answers", "answer"),
    "reward": ("task.reward", "math_verify, or your own function as file.py:function", "math_verify"),
    "replay": ("update.replay", "R3 or R2 for a mixture of experts, none for a dense model", "none"),
}
"""Flag → field of the recipe, what it is, and its default; an empty one has none."""


def main(argv: list[str]) -> int:
    """Write a recipe for one's own model and data; what no flag says is asked for."""
    parser = argparse.ArgumentParser(
        "steadyrl init", description="Write a recipe for your own model and data. What no flag says is asked for."
    )
    parser.add_argument("file", type=Path, nargs="?", default=Path("mine.toml"), help="what to write (mine.toml)")
    for flag, (_, meaning, default) in FIELDS.items():
        parser.add_argument(f"--{flag}", help=f"{meaning} ({default})" if default else meaning)
    options = vars(parser.parse_args(argv))
    file: Path = options["file"]
    if file.exists():
        raise UserError(f"{file} exists already; name another file: steadyrl init FILE")
    values: dict[str, str] = {}
    for flag, (field, meaning, default) in FIELDS.items():
        given = options[flag.replace("-", "_")]
        columns = _columns(values["task.path"]) if given is None and flag.endswith("column") else ""
        values[field] = _asked(flag, meaning + columns, default) if given is None else given
    text = filled(find("own-model").read_text(encoding="utf-8"), values)
    head = "# Your own model on your own question/answer pairs, written by `steadyrl init`.\n"
    text = head + text[text.index("seed = ") :]
    resolve(tomllib.loads(text), source=str(file))
    file.write_text(text, encoding="utf-8")
    print(
        f"wrote {file}. Look through it, then type\n"
        f"  steadyrl train {file} --dry-run    what would run, the first prompt, and the memory it needs\n"
        f"  steadyrl audit {file}              does the verifier pay junk, or reject what is right?\n"
        f"  steadyrl train {file}"
    )
    return 0


def filled(recipe: str, values: Mapping[str, str]) -> str:
    """A recipe with other texts in some of its fields; comments stay.

    Args:
        recipe: TOML.
        values: texts by `section.field`; each field is in the recipe, as a text.
    """
    section, lines, left = "", [], dict(values)
    for line in recipe.splitlines(keepends=True):
        section = line.strip("[]\n") if line.startswith("[") else section
        name = f"{section}.{line.partition(' = ')[0]}"
        if name in left:
            value = json.dumps(left.pop(name), ensure_ascii=False)  # as TOML writes it
            line = re.sub(r'"[^"]*"', lambda found, value=value: value, line, count=1)
        lines.append(line)
    assert not left, left
    return "".join(lines)


def _asked(flag: str, meaning: str, default: str) -> str:
    """What is typed; an empty line is the default. Elsewhere than on a terminal nobody is asked.

    Raises:
        UserError: there is neither an answer nor a default.
    """
    answer = ""
    if sys.stdin.isatty():
        with contextlib.suppress(EOFError):  # Ctrl-D, which is no answer
            answer = input(f"{meaning}{f' [{default}]' if default else ''}: ").strip()
    if not answer and not default:
        raise UserError(f"--{flag} is missing: {meaning}")
    return answer or default


def _columns(path: str) -> str:
    """The columns of the first row of a file; a dataset of the hub is not downloaded for them."""
    if not Path(path).expanduser().is_file():
        return ""
    _, rows = read_source(str(Path(path).expanduser()), subset=None, split="train")
    _, row = next(iter(rows), ("", ""))
    return f" (there are {', '.join(row)})" if isinstance(row, dict) else ""
