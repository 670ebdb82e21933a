"""What takes seconds before a command does its work: importing torch, and loading a model."""

import contextlib
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING

from steadyrl.run.progress import Display
from steadyrl.terminal import tell

if TYPE_CHECKING:
    from steadyrl.parts import Parts
    from steadyrl.prepare import Prepared


TRAINING_NEEDS = (5, 17)
"""The oldest transformers that training is tested with; objectives and routing take an older one."""


def import_torch() -> None:
    """Import what every command needs that computes, and say so meanwhile."""
    if warning := too_old(version("transformers")):
        tell(warning)
    with Display().bar("importing torch and transformers"):
        import steadyrl.parts  # noqa: F401


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
def loaded(ready: "Prepared") -> "Iterator[Parts]":
    """The parts of a run. On a terminal, the bars of the libraries show what is downloaded and loaded."""
    from transformers.utils import logging

    from steadyrl.parts import open_parts

    with contextlib.ExitStack() as stack:
        with contextlib.ExitStack() as shown:
            if not sys.stderr.isatty():
                logging.disable_progress_bar()
                shown.enter_context(Display().bar("loading the model and building the engine"))
            parts = stack.enter_context(open_parts(ready))
        logging.disable_progress_bar()  # one bar is enough: transformers shows its own at every checkpoint
        yield parts
