"""Flip every sign, inequality, constant and stop-gradient of `algo/`, one at a time: some test must turn red.

`make mutants`, or `python tests/mutants.py ratio trust` for some files only. Works on a copy of the tree in a temporary
folder; prints the survivors and, last, the share that was killed. Fails below 95%.
"""

import ast
import copy
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis  # noqa: F401  what the children share is loaded before they part
import jaxtyping  # noqa: F401
import pytest
import torch

ROOT = Path(__file__).parents[1]
TESTS = ("trust", "advantage", "ratio", "surrogate", "ledger", "enumeration", "objective")
SECONDS = 120
KILLED = 0.95
COMPARED = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
TURNED = {ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE}
COMBINED = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
RENAMED = {
    "detach": "clone",
    "no_grad": "enable_grad",
    "amax": "amin",
    "amin": "amax",
    "cummin": "cummax",
    "exp": "expm1",
    "expm1": "exp",
}


def variants(node: ast.AST) -> Iterator[tuple[str, str, object]]:
    """What may be wrong about a node: a name for it, and the field that takes another value."""
    match node:
        case ast.Compare(ops=[op]):
            for table in (COMPARED, TURNED):
                if type(op) in table:
                    yield table[type(op)].__name__, "ops", [table[type(op)]()]
        case ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in COMBINED:
            yield COMBINED[type(op)].__name__, "op", COMBINED[type(op)]()
        case ast.UnaryOp(op=ast.USub()):
            yield "no minus", "op", ast.UAdd()
        case ast.UnaryOp(op=ast.Invert(), operand=operand):
            yield "no ~", "operand", ast.UnaryOp(op=ast.Invert(), operand=operand)
        case ast.Constant(value=bool() as value):
            yield f"{not value}", "value", not value
        case ast.Constant(value=int() as value):
            yield f"{value + 1}", "value", value + 1
        case ast.Constant(value=float() as value):
            yield f"{value * 1.1 + 0.01:g}", "value", value * 1.1 + 0.01
        case ast.Attribute(attr=attr) if attr in RENAMED:
            yield RENAMED[attr], "attr", RENAMED[attr]
        case ast.keyword(arg="max" | "min" as arg):
            yield "the other bound", "arg", "min" if arg == "max" else "max"


def mutants(path: Path) -> Iterator[tuple[str, str]]:
    """A line for people and the whole source, for each mutant of a file; decorators and annotations are left alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    fields = ("decorator_list", "annotation", "returns")
    asides = [part for node in ast.walk(tree) for name in fields for part in _several(getattr(node, name, None))]
    skipped = {id(node) for aside in asides for node in ast.walk(aside)}
    for index, node in enumerate(ast.walk(tree)):
        for name, field, value in () if id(node) in skipped else variants(node):
            other = copy.deepcopy(tree)
            setattr(list(ast.walk(other))[index], field, value)
            line = getattr(node, "lineno", 0)
            said = ast.unparse(node).strip().splitlines()[0][:90]
            yield f"{path.name}:{line}: {said}  →  {name}", ast.unparse(ast.fix_missing_locations(other))


def _several(found: ast.AST | list[ast.AST] | None) -> list[ast.AST]:
    return found if isinstance(found, list) else [found] if found else []


def survives(copy_of_tree: Path, module: str) -> bool:
    """Run the fast tests of `algo/` in a child process, those of the module first."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    signal.alarm(SECONDS)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)
    os.chdir(copy_of_tree)
    sys.path[:0] = [str(copy_of_tree / "src"), str(copy_of_tree / "tests")]
    files = [f"tests/algo/test_{name}.py" for name in sorted(TESTS, key=lambda name: name != module)]
    os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", *files]))


def main(*names: str) -> int:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in ("src", "tests"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", tree)
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.dont_write_bytecode = True
        if not survives(tree, ""):
            raise SystemExit("the tests fail before anything is changed")
        tried, alive = 0, []
        for path in sorted(p for p in (tree / "src/steadyrl/algo").glob("*.py") if p.stem in names or not names):
            original = path.read_text(encoding="utf-8")
            for said, source in list(mutants(path)):
                path.write_text(source, encoding="utf-8")
                tried += 1
                if survives(tree, path.stem):
                    alive.append(said)
                    print(f"survived: {said}", flush=True)
            path.write_text(original, encoding="utf-8")
    killed = 1.0 - len(alive) / tried
    print(f"{tried} mutants, {len(alive)} survived: {killed:.1%} killed")
    return int(killed < KILLED)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
