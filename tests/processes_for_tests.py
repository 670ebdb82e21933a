"""What a process of its own does in the tests: it must be importable by name."""

import importlib
import os
import signal
from collections.abc import Sequence
from operator import attrgetter

from recipes_for_tests import command


def train_and_die(argv: Sequence[str], place: str, call: int) -> None:
    """Run a command, and end by SIGKILL, as a power cut would, at the call number `call` of `module:function`."""
    module, _, path = place.partition(":")
    owner_path, _, name = path.rpartition(".")
    root = importlib.import_module(module)
    owner = attrgetter(owner_path)(root) if owner_path else root
    original, count = getattr(owner, name), 0

    def watched(*args, **kwargs):
        nonlocal count
        count += 1
        if count == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, watched)
    raise SystemExit(command(*argv))
