"""A verifier of the user's own: a function in a Python file."""

from collections.abc import Callable
from typing import Any

from steadyrl.options.own import OwnCode, OwnCodeError, find_own, is_own, load_own
from steadyrl.tasks.base import TaskError


def function_file(reward: str) -> OwnCode:
    """Find the file of `file.py:function`, without loading it.

    Raises:
        TaskError: the text has another form, or there is no such Python file.
    """
    path, _, name = reward.rpartition(":")
    if not (is_own(reward) and path and name) or "\0" in path:
        raise TaskError(f"reward = {reward!r} is neither `math_verify` nor `file.py:function`")
    try:
        return find_own(reward, field="reward")
    except OwnCodeError as error:
        raise TaskError(str(error)) from error


def load_function(place: OwnCode) -> Callable[..., Any]:
    """Run the file and return its function; see `options.own.load_own`.

    Raises:
        TaskError: loading the file raised something or called `sys.exit`, or it has no such function.
    """
    try:
        function = load_own(place)
    except OwnCodeError as error:
        raise TaskError(str(error)) from error
    if isinstance(function, type):
        raise TaskError(
            f"{place.label}: {place.name} is a class; name a function, or an instance such as `reward = {place.name}()`"
        )
    return function
