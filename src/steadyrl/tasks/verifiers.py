"""Verifiers of question/answer pairs: math_verify, and a function of the user's own."""

import importlib.util
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from steadyrl.tasks.base import TaskError

Scorer = Callable[[str, str], float]
"""A user's own verifier: `score(prompt, completion)`."""


def math_verify_score(answer: str, completion: str) -> float:
    """1 if math_verify finds the completion's result equal to the reference answer, else 0.

    An answer without LaTeX delimiters is read as a formula, and of a worked answer that ends in `#### 72`, as
    in GSM8K, the part behind the mark counts.

    Raises:
        TaskError: the reference answer holds nothing that math_verify can read.
    """
    import math_verify  # with sympy it takes most of a second, which tasks without it need not pay

    # it warns that its own time limit is off; ours holds, and holds in C code too
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    no_limit: Any = None
    gold = answer.rpartition("####")[2].strip()
    delimited = any(mark in gold for mark in ("$", "\\boxed", "\\(", "\\["))
    expected = math_verify.parse(gold if delimited else f"${gold}$", parsing_timeout=no_limit)
    if not expected:
        raise TaskError(
            f"math_verify cannot read the answer {answer!r}; give a formula, or score it yourself"
        )
    found = math_verify.parse(completion, parsing_timeout=no_limit)
    return float(math_verify.verify(expected, found, timeout_seconds=no_limit))


def load_function(file: Path, name: str) -> Scorer:
    """Load the function `name` of a Python file by its path.

    Raises:
        TaskError: there is no such file, or no such function in it.
    """
    spec = importlib.util.spec_from_file_location(f"steadyrl_score_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise TaskError(f"score = '{file}:{name}': {file} is not a Python file; its name must end in .py")
    if not file.is_file():
        raise TaskError(f"score = '{file}:{name}': there is no such file in or below {Path.cwd()}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and typing look a class's module up by name
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        found = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise TaskError(
            f"score = '{file}:{name}': no such function there; it has {', '.join(found) or 'none'}"
        )
    return cast(Scorer, function)
