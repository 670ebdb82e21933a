"""Flip every sign, inequality, constant and stop-gradient of the core, one at a time: some test must turn red.

The core is `algo/`, routing, packing and the update. `make mutants`, or `python tests/mutants.py ratio packing` for
some files only. Works on a copy of the tree in a temporary folder. A test run may take ten times what it takes before
anything is changed. Prints the survivors, those of `mutants.toml` with the reason why no test can or should see them,
and, last, the share that was killed. Fails below 95% of all, on a survivor without a reason, and on a reason without a
survivor.
"""

import ast
import copy
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import beartype  # noqa: F401  what the children share is loaded before they part
import hypothesis  # noqa: F401
import jaxtyping  # noqa: F401
import pytest
import torch

ROOT = Path(__file__).parents[1]
ALGO = [f"algo/test_{n}.py" for n in ("trust", "advantage", "ratio", "surrogate", "ledger", "enumeration", "objective")]
OTHERS = {
    "routing/*.py": ["routing/test_routing.py", "training/test_update.py"],
    "model/packing.py": ["model/test_packing.py", "invariants/test_packed_responses.py", "test_two_turns.py"],
    "training/*.py": [
        *(f"training/test_{name}.py" for name in ("trainer", "update", "schedule")),
        *("rollout/test_advantages.py", "invariants/test_objective_equivalences.py"),
    ],
}
"""What is mutated outside `algo/`, and its tests."""
PATIENCE, LEAST = 10, 30.0
KILLED = 0.95
KNOWN = ROOT / "tests" / "mutants.toml"
COMPARED = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
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
    "minimum": "maximum",
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
        case ast.UnaryOp(op=ast.Invert() | ast.Not() as op, operand=operand):
            yield "twice", "operand", ast.UnaryOp(op=op, operand=operand)
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
    """A name and the whole source, for each mutant of a file; decorators and annotations are left alone."""
    source = path.read_text(encoding="utf-8")
    tree, lines, seen = ast.parse(source), source.splitlines(), Counter()
    fields = ("decorator_list", "annotation", "returns")
    asides = [part for node in ast.walk(tree) for name in fields for part in _several(getattr(node, name, None))]
    skipped = {id(node) for aside in asides for node in ast.walk(aside)}
    for index, node in enumerate(ast.walk(tree)):
        for change, field, value in () if id(node) in skipped else variants(node):
            other = copy.deepcopy(tree)
            setattr(list(ast.walk(other))[index], field, value)
            line = lines[getattr(node, "lineno", 1) - 1].strip()
            name = f"{path.stem}: {line} | {ast.unparse(node).splitlines()[0][:90]} → {change}"
            seen[name] += 1  # a line may stand, or hold the same thing, twice
            yield name + f" #{seen[name]}" * (seen[name] > 1), ast.unparse(ast.fix_missing_locations(other))


def _several(found: ast.AST | list[ast.AST] | None) -> list[ast.AST]:
    return found if isinstance(found, list) else [found] if found else []


def run(tree: Path, files: list[str], *, seconds: float, compiling: bool = False) -> int:
    """Run tests in a child process; its exit status, −SIGALRM where they took longer than `seconds`."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    signal.setitimer(signal.ITIMER_REAL, seconds)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)
    os.chdir(tree)
    sys.dont_write_bytecode = not compiling  # once, and never from a mutant
    sys.path[:0] = [str(tree / "src"), str(tree / "tests")]
    plain = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
    os._exit(pytest.main([*plain, *(f"tests/{file}" for file in files)]))


def tests_of(path: Path) -> list[str]:
    """The test files of a module; in `algo/`, its own first."""
    own = (files for pattern, files in OTHERS.items() if path.match(f"steadyrl/{pattern}"))
    return next(own, None) or sorted(ALGO, key=lambda file: file != f"algo/test_{path.stem}.py")


def patience(tree: Path, files: list[str]) -> float:
    """Seconds that tests may take on a mutant: ten times what they take now, when nothing is changed."""
    start = time.monotonic()
    if code := run(tree, files, seconds=3600.0, compiling=True):
        cause = "took longer than an hour" if code == -signal.SIGALRM else f"ended with status {code}"
        raise SystemExit(f"before anything is changed, the tests {', '.join(files)} {cause}: `pytest` shows more")
    return max(LEAST, PATIENCE * (time.monotonic() - start))


def survivors(tree: Path, path: Path) -> Iterator[tuple[str, bool]]:
    """Each mutant of a file, and whether no test saw it."""
    files = tests_of(path)
    seconds = patience(tree, files)
    original = path.with_suffix(".original")
    shutil.copy2(path, original)
    for name, source in list(mutants(path)):
        path.write_text(source, encoding="utf-8")
        yield name, run(tree, files, seconds=seconds) == 0
    shutil.move(original, path)


def main(*names: str) -> int:
    torch.set_num_threads(1)
    torch.testing.assert_close(torch.ones(1), torch.ones(1))  # loads what it needs, once
    known = tomllib.loads(KNOWN.read_text(encoding="utf-8"))
    tried: dict[str, bool] = {}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in ("src", "tests"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", tree)
        package = tree / "src" / "steadyrl"
        core = [path for pattern in ("algo/**/*.py", *OTHERS) for path in package.glob(pattern)]
        for path in sorted(p for p in core if p.stem in names or not names):
            for name, alive in survivors(tree, path):
                tried[name] = alive
                if alive:
                    print(f"survived: {name}\n          {known.get(name, 'a test is missing')}", flush=True)
    return judged(tried, known, partly=set(names))


def judged(tried: dict[str, bool], known: dict[str, str], *, partly: set[str]) -> int:
    """Print the share that was killed and what is wrong; the exit status. Of a part, the share is not asked for."""
    alive = {name for name in tried if tried[name]}
    unexplained = alive - known.keys()
    gone = {name for name in known.keys() - alive if not partly or name.partition(":")[0] in partly}
    for name in sorted(gone):
        print(f"in {KNOWN.name}, but killed or no longer a mutant: {name}")
    killed = 1.0 - len(alive) / len(tried)
    print(f"{len(tried)} mutants, {killed:.1%} killed; {len(alive)} survived, {len(unexplained)} without a reason")
    return int(bool(unexplained or gone) or (not partly and killed < KILLED))


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
