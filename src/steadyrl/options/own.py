"""Code of the user's own, named in a recipe: `file.py:name`, or `module:name` for what is installed."""

import ast
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from steadyrl.errors import UserError


class OwnCodeError(UserError):
    """The user's code cannot be found or loaded. The message names the field and what it says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnCode:
    """Where a class or function of the user's is; nothing of it has run."""

    file: Path
    """Its file, as an absolute path."""
    name: str
    """Its name in the file."""
    label: str
    """How messages name it: the field and what the recipe says."""

    @property
    def folders(self) -> list[Path]:
        """Folders that its imports may come from: its own, and the one above its package if it is in one."""
        return list(dict.fromkeys((self.file.parent, _package(self.file)[0])))

    def files(self) -> list[Path]:
        """Its file, and what that imports, directly or not, from its own folder."""
        found, waiting = [], [self.file]
        while waiting:
            path = waiting.pop()
            if path not in found and path.is_file():
                found.append(path)
                waiting += [near for name in _imported(path) for near in _named(self.file.parent, name)]
        return found


def is_own(written: str) -> bool:
    """Whether a recipe means code of the user's own, and not the name of ours."""
    return ":" in written


def find_own(written: str, *, field: str) -> OwnCode:
    """Find the file of `file.py:name` or `module:name`, without loading it.

    Args:
        written: what the recipe says.
        field: where it says so.

    Raises:
        OwnCodeError: the text has another form, or there is no such Python file or module.
    """
    label = f"{field} = {written!r}"
    path, _, name = written.rpartition(":")
    if not (path and name) or "\0" in path:
        raise OwnCodeError(f"{label} is neither `file.py:name` nor `module:name`")
    if not path.endswith(".py") and all(part.isidentifier() for part in path.split(".")):
        return OwnCode(file=_file_of_module(path, label), name=name, label=label)
    file = Path(path).expanduser()
    if file.suffix != ".py":
        raise OwnCodeError(f"{label}: {file} is not a Python file; its name must end in .py")
    if not file.is_file():
        raise OwnCodeError(f"{label}: there is no such file, seen from {_here()}")
    return OwnCode(file=file.absolute(), name=name, label=label)


def _file_of_module(module: str, label: str) -> Path:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        raise OwnCodeError(f"{label}: {in_words(error)}; the name of a file ends in .py") from error
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise OwnCodeError(f"{label}: there is no Python module {module}; the name of a file ends in .py")
    return Path(spec.origin)


def load_own(place: OwnCode) -> Any:
    """Run the file and return what it calls `place.name`. A file that has not changed is run once in a process.

    The folder of the file is importable from now on, behind the installed packages. The module has the name of the
    file, so that child processes can import it; a file in a package has the package's name in front. A file whose name
    belongs to an installed module gets another name, which child processes cannot import.

    Raises:
        OwnCodeError: loading the file raised something or called `sys.exit`, or nothing callable has the name.
    """
    for folder in map(str, place.folders):
        if folder not in sys.path:
            sys.path.append(folder)
    module = _run(place, place.file.stat().st_mtime_ns)
    found = getattr(module, place.name, None)
    if not callable(found):
        there = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise OwnCodeError(f"{place.label}: there is no {place.name} in it; it has {', '.join(there) or 'none'}")
    return found


@cache  # two sections that name classes of one file must get them from one module
def _run(place: OwnCode, changed: int) -> ModuleType:
    name = _module_name(place.file)
    spec = importlib.util.spec_from_file_location(name, place.file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses, typing and pickle look a module up by name
    try:
        if "." in name:
            importlib.import_module(name.rpartition(".")[0])  # its package, for relative imports
        spec.loader.exec_module(module)
    except SystemExit as end:
        raise OwnCodeError(
            f"{place.label}: loading it called sys.exit({0 if end.code is None else repr(end.code)}); "
            'put what the file does as a script under `if __name__ == "__main__":`'
        ) from end
    except BaseException as error:  # the user's file may raise anything
        raise OwnCodeError(f"{place.label}: loading it raised {in_words(error)}{_where(error, place.file)}") from error
    return module


def _module_name(file: Path) -> str:
    """The name other processes import it by, unless that is another module's."""
    root, name = _package(file)
    private = f"steadyrl_own_{file.stem}".replace(".", "_")
    if not all(part.isidentifier() for part in name.split(".")) or name in sys.modules:
        return private
    try:
        found = importlib.util.find_spec(name.partition(".")[0])
    except (ImportError, ValueError):
        return private
    first = root / name.partition(".")[0]
    origins = {str(first.with_suffix(".py")), str(first / "__init__.py")}
    return name if found is not None and found.origin in origins else private


def _package(file: Path) -> tuple[Path, str]:
    """The folder to import a file from, and its full name there: `pkg.reward` where the folder has an `__init__.py`."""
    folder, name = file.parent, file.stem
    while (folder / "__init__.py").is_file() and folder != folder.parent:
        folder, name = folder.parent, f"{folder.name}.{name}"
    return folder, name


def in_words(error: BaseException) -> str:
    """`ValueError: what it says`; an error's own text may raise as well."""
    try:
        text = str(error)
    except BaseException:  # the user's class may raise anything
        text = "its text cannot be read"
    return f"{type(error).__name__}: {text}"


def _where(error: BaseException, file: Path) -> str:
    """The line of the file that it came from, and a way out where one is known."""
    if "relative import" in in_words(error):
        return "; write `from helper import …` without the dot, or put an `__init__.py` beside the file"
    if isinstance(error, SyntaxError):
        return ""  # its text has the line
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f" (line {lines[-1]})" if lines else ""


def _here() -> str:
    try:
        return str(Path.cwd())
    except OSError:
        return "a folder that was deleted"


def _imported(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # whoever loads it is told
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from [node.module.partition(".")[0]] if node.module else [alias.name for alias in node.names]


def _named(folder: Path, name: str) -> list[Path]:
    if (folder / name / "__init__.py").is_file():
        return sorted((folder / name).rglob("*.py"))
    return [folder / f"{name}.py"]
