"""A verifier of the user's own: a function in a Python file."""

import importlib.util
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from steadyrl.tasks.base import TaskError


@dataclass(frozen=True, kw_only=True, slots=True)
class FunctionFile:
    """Where a reward function is; nothing of it has run."""

    file: Path
    """Its file, as an absolute path."""
    name: str
    """Its name in the file."""
    written: str
    """What the recipe says."""

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"reward = {self.written!r}"

    @property
    def folders(self) -> list[Path]:
        """Folders that its imports may come from: its own, and the one above its package if it is in one."""
        return list(dict.fromkeys((self.file.parent, _package(self.file)[0])))


def function_file(reward: str) -> FunctionFile:
    """Find the file of `file.py:function`, without loading it.

    Raises:
        TaskError: the text has another form, or there is no such Python file.
    """
    path, colon, name = reward.rpartition(":")
    if not (path and colon and name) or "\0" in path:
        raise TaskError(f"reward = {reward!r} is neither `math_verify` nor `file.py:function`")
    file = Path(path).expanduser()
    if file.suffix != ".py":
        raise TaskError(f"reward = {reward!r}: {file} is not a Python file; its name must end in .py")
    if not file.is_file():
        raise TaskError(f"reward = {reward!r}: there is no such file, seen from {_here()}")
    return FunctionFile(file=file.absolute(), name=name, written=reward)


def load_function(place: FunctionFile) -> Callable[..., Any]:
    """Run the file and return its function.

    The folder of the file is importable from now on, behind the installed packages. The module has the name of the
    file, so that child processes can import it; a file in a package has the package's name in front. A file whose name
    belongs to an installed module gets another name, which child processes cannot import.

    Raises:
        TaskError: loading the file raised something or called `sys.exit`, or it has no such function.
    """
    for folder in map(str, place.folders):
        if folder not in sys.path:
            sys.path.append(folder)
    module = _run(place)
    function = getattr(module, place.name, None)
    if not callable(function):
        found = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise TaskError(f"{place.label}: no such function there; it has {', '.join(found) or 'none'}")
    if isinstance(function, type):
        raise TaskError(
            f"{place.label}: {place.name} is a class; name a function, or an instance such as `reward = {place.name}()`"
        )
    return function


def _run(place: FunctionFile) -> ModuleType:
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
        raise TaskError(
            f"{place.label}: loading it called sys.exit({0 if end.code is None else repr(end.code)}); "
            'put what the file does as a script under `if __name__ == "__main__":`'
        ) from end
    except BaseException as error:  # the user's file may raise anything
        raise TaskError(f"{place.label}: loading it raised {in_words(error)}{_where(error, place.file)}") from error
    return module


def _module_name(file: Path) -> str:
    """The name other processes import it by, unless that is another module's."""
    root, name = _package(file)
    private = f"steadyrl_reward_{file.stem}".replace(".", "_")
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
