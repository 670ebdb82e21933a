"""The options of our own classes, read from their source, without importing what computes them.

A class that a recipe can choose says so by its tag, such as `name: ClassVar[str] = "minirl"`, in a file of its room.
Its options are the fields of a dataclass, each with its meaning in the line below; or the keyword-only parameters of
`__init__`, whose meaning stands under `Args:`. Types and defaults may use what the file imports from this package and
the standard library.
"""

import ast
import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass
from functools import cache
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """Where the classes for one section of the recipe are."""

    places: tuple[str, ...]
    """Patterns of their files."""
    tag: str
    """The field that chooses among them."""
    default: str | None
    """What is chosen where the section does not say; None: it must."""
    given: frozenset[str] = frozenset()
    """Parameters that come from the run, not from the recipe."""


ROOMS = {
    "objective": Room(places=("algo/objectives/*.py",), tag="name", default=None),
    "advantage": Room(places=("algo/advantage.py",), tag="name", default="group"),
    "task": Room(
        places=("tasks/*.py",), tag="kind", default=None, given=frozenset({"seed", "sets", "leave_out", "digest"})
    ),
    "engine": Room(places=("engine/**/*.py",), tag="kind", default="local", given=frozenset({"end_tokens"})),
}
"""Sections of the recipe whose classes are found by their tag."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One option of a class."""

    type: Any
    """Its annotation."""
    default: Any = MISSING
    """Its default; MISSING: it has none."""
    meaning: str = ""
    """What it is, for people."""
    settable: bool = True
    """Off: a constant of the class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Declared:
    """A class that a recipe can choose."""

    module: str
    """Where it is defined."""
    name: str
    """The name of the class."""
    meaning: str
    """Its docstring."""
    options: Mapping[str, Option]
    """Its options by name, those of its base classes first."""

    def load(self) -> type:
        """The class itself; this imports what it computes with."""
        return getattr(importlib.import_module(self.module), self.name)


@cache
def declared(section: str) -> dict[str, Declared]:
    """The classes that a section of the recipe can choose, by their tag."""
    room, found = ROOMS[section], {}
    for path in sorted(path for pattern in room.places for path in _PACKAGE.glob(pattern)):
        if f"    {room.tag}: ClassVar[str] = " in path.read_text(encoding="utf-8"):
            names = _names(_module(path))
            found |= {tag: names[node.name] for node, tag in names.tagged(room.tag)}
    return found


def meanings(text: str) -> dict[str, str]:
    """What a docstring says of parameters under `Args:`, by their names."""
    part = re.search(r"^Args:\n((?:    .*\n)+)", text + "\n", flags=re.MULTILINE)
    entries = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", part.group(1) if part else "", flags=re.MULTILINE)
    return {name: " ".join(meaning.split()) for name, meaning in entries}


def _module(path: Path) -> str:
    parts = path.relative_to(_PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def _names(module: str) -> "_Names":
    path = _PACKAGE.parent.joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return _Names(module, ast.parse(source.read_text(encoding="utf-8")))


class _Names(dict[str, Any]):
    """The names of a module, each evaluated when it is first asked for."""

    def __init__(self, module: str, tree: ast.Module) -> None:
        super().__init__()
        self._module, self._nodes = module, {name: node for node in tree.body for name in _bound(node)}

    def __missing__(self, name: str) -> Any:
        match self._nodes.get(name):
            case ast.ClassDef() as node:
                value = self._declared(node)
            case ast.Assign() as node:
                value = self._evaluate(node.value)
            case ast.ImportFrom(module=str(module), names=aliases):
                original = next(alias.name for alias in aliases if name in (alias.name, alias.asname))
                ours = module.startswith("steadyrl.") and not module.startswith("steadyrl.options")
                value = _names(module)[original] if ours else getattr(importlib.import_module(module), original)
            case ast.Import():
                value = importlib.import_module(name)
            case _:
                raise KeyError(name)
        return self.setdefault(name, value)

    def tagged(self, tag: str) -> Iterator[tuple[ast.ClassDef, str]]:
        """The classes of the module with the tag that each sets in its own body."""
        for node in (node for node in self._nodes.values() if isinstance(node, ast.ClassDef)):
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and ast.unparse(line.target) == tag and _is_constant(line):
                    assert line.value is not None
                    yield node, ast.literal_eval(line.value)

    def _evaluate(self, node: ast.expr) -> Any:
        return eval(compile(ast.Expression(node), self._module, "eval"), {}, self)

    def _declared(self, node: ast.ClassDef) -> Declared:
        options: dict[str, Option] = {}
        for base in node.bases:
            if isinstance(base, ast.Name) and isinstance(above := self[base.id], Declared):
                options |= above.options
        if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
            options |= self._fields(node, options)
        options |= self._parameters(node)
        meaning = ast.get_docstring(node) or ""
        return Declared(module=self._module, name=node.name, meaning=meaning, options=options)

    def _fields(self, node: ast.ClassDef, above: Mapping[str, Option]) -> Iterator[tuple[str, Option]]:
        """The fields of a dataclass; one that is set anew keeps its meaning unless it has another."""
        for line, behind in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and not _is_constant(line):
                name, default = line.target.id, MISSING if line.value is None else self._evaluate(line.value)
                own = default if isinstance(default, Field) else None
                inherited = above[name].meaning if name in above else ""
                yield (
                    name,
                    Option(
                        type=self._evaluate(line.annotation),
                        default=default if own is None else own.default,
                        meaning=_text(behind) or inherited,
                        settable=own is None or own.init,
                    ),
                )

    def _parameters(self, node: ast.ClassDef) -> Iterator[tuple[str, Option]]:
        """The keyword-only parameters of `__init__`, less those that come from the run."""
        given = frozenset[str]().union(*(room.given for room in ROOMS.values()))
        for line in node.body:
            if isinstance(line, ast.FunctionDef) and line.name == "__init__":
                told = meanings(ast.get_docstring(node) or "") | meanings(ast.get_docstring(line) or "")
                for argument, default in zip(line.args.kwonlyargs, line.args.kw_defaults, strict=True):
                    if argument.arg not in given and argument.annotation is not None:
                        yield (
                            argument.arg,
                            Option(
                                type=self._evaluate(argument.annotation),
                                default=MISSING if default is None else self._evaluate(default),
                                meaning=told.get(argument.arg, ""),
                            ),
                        )


def _bound(node: ast.stmt) -> Iterator[str]:
    """The names that a statement of a module binds."""
    match node:
        case ast.ClassDef(name=name):
            yield name
        case ast.Assign(targets=[ast.Name(id=name)]):
            yield name
        case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
            yield from (alias.asname or alias.name for alias in aliases)


def _is_constant(line: ast.AnnAssign) -> bool:
    return ast.unparse(line.annotation).startswith("ClassVar")


def _text(node: ast.stmt | None) -> str:
    """A string that stands alone, in one line; else nothing."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(node.value.value.split())
    return ""
