"""What takes seconds before a command does its work: importing torch, and loading a model."""

import contextlib
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING

from steadyrl.config import Recipe
from steadyrl.progress import Display
from steadyrl.terminal import tell

if TYPE_CHECKING:
    from steadyrl.session import Prepared, Session


TRAINING_NEEDS = (5, 17)
"""The oldest transformers that training is tested with; objectives and routing take an older one."""


def import_torch() -> None:
    """Import what every command needs that computes, and say so meanwhile."""
    if warning := too_old(version("transformers")):
        tell(warning)
    with Display().bar("importing torch and transformers"):
        import steadyrl.session  # noqa: F401


def too_old(installed: str) -> str | None:
    """A warning where training may fail with this version of transformers."""
    if tuple(map(int, installed.split(".")[:2])) >= TRAINING_NEEDS:
        return None
    needed = ".".join(map(str, TRAINING_NEEDS))
    return (
        f"transformers {installed} is installed. Training is tested with {needed} or newer, and some families need it: "
        f'pip install "transformers>={needed}"'
    )


@contextlib.contextmanager
def loaded(recipe: Recipe, ready: "Prepared | None" = None) -> "Iterator[Session]":
    """The session of a recipe. On a terminal, the bars of the libraries show what is downloaded and loaded.

    Args:
        recipe: what is asked for.
        ready: what `session.prepare` found out about it, where that has been done.
    """
    from transformers.utils import logging

    from steadyrl.session import open_session

    with contextlib.ExitStack() as stack:
        with contextlib.ExitStack() as shown:
            if not sys.stderr.isatty():
                logging.disable_progress_bar()
                shown.enter_context(Display().bar("loading the model and building the engine"))
            session = stack.enter_context(open_session(recipe, ready))
        logging.disable_progress_bar()  # one bar is enough: transformers shows its own at every checkpoint
        yield session
