"""A verifier of the user's own: a function in a Python file."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

from steadyrl.tasks.base import TaskError

Scorer = Callable[..., float]
"""`score(prompt, completion)`, or `score(prompt, completion, answer)` where it compares with the reference."""


def load_function(file: Path, name: str) -> Scorer:
    """Load the function `name` of a Python file by its path.

    Raises:
        TaskError: there is no such file, or no such function in it.
    """
    spec = importlib.util.spec_from_file_location(f"steadyrl_score_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise TaskError(f"score = '{file}:{name}': {file} is not a Python file; its name must end in .py")
    if not file.is_file():
        raise TaskError(f"score = '{file}:{name}': there is no such file, seen from {Path.cwd()}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and typing look a class's module up by name
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's file may raise anything
        raise TaskError(f"score = '{file}:{name}': loading it raised {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        found = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise TaskError(f"score = '{file}:{name}': no such function there; it has {', '.join(found) or 'none'}")
    return cast(Scorer, function)
