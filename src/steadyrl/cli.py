"""The command line: which commands there are, and how each may end.

Each command is a module of `commands`, imported when it is asked for: `--help` needs neither torch nor pydantic.
"""

import difflib
import errno
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from steadyrl.errors import NO_ROOM, RunStopped, UserError
from steadyrl.terminal import visible

COMMANDS = {
    "init": ("", "write a recipe for your own model and data"),
    "recipes": ("[NAME]", "list the recipes that come with SteadyRL, or print one"),
    "train": ("RECIPE", "train; RECIPE is the name of one of ours or a TOML file"),
    "resume": ("RUN", "continue a run that was interrupted"),
    "eval": ("RUN", "evaluate the newest checkpoint of a run, or another one"),
    "show": ("RUN", "rebuild the report of a run"),
    "gap": ("RUN", "compare the token-level gradient with the sequence-level one"),
    "audit": ("RECIPE", "does the verifier pay junk, or reject what is right?"),
    "conformance": ("--model M", "check whether Routing Replay is exact for a model"),
}


def usage() -> str:
    """What `--help` prints: a line for each command."""
    lines = [f"  {f'{name} {arguments}':<24} {meaning}" for name, (arguments, meaning) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: steadyrl COMMAND …",
            "",
            *lines,
            "",
            "`steadyrl COMMAND --help` says more, and `steadyrl train RECIPE --help` shows every field of the recipe.",
            "`steadyrl --version` prints the version. Start with `steadyrl train demo`.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 if it went well, 1 if a run had to stop, 2 for a mistake of the user's, 130 and 143 where Ctrl-C and SIGTERM
        ended it early.
    """
    try:
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except BrokenPipeError:  # the reader of the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at the end
        return 0


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        from importlib.metadata import version

        print(f"steadyrl {version('steadyrl')}")
        return 0
    if argv[0] not in COMMANDS:
        print(f"steadyrl: {_unknown(argv[0])}", file=sys.stderr)
        return 2
    try:
        return importlib.import_module(f"steadyrl.commands.{argv[0]}").main(argv[1:])
    except UserError as error:
        print(f"steadyrl: {visible(str(error), lines=True)}", file=sys.stderr)
        return 2
    except RunStopped as error:
        print(f"steadyrl: {error}", file=sys.stderr)
        return 1
    except PermissionError as error:
        print(f"steadyrl: {error}. What was saved is intact; give the permission and resume", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in NO_ROOM | {errno.EROFS}:
            raise
        print(f"steadyrl: cannot write: {error}. The checkpoints are intact; make room and resume", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        print("steadyrl: interrupted; what was saved is intact, and `steadyrl resume RUN` continues", file=sys.stderr)
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)


def _unknown(name: str) -> str:
    """What is said of a command that there is not."""
    if name == "lab":
        return "the lab is run by `python -m steadyrl_lab`, at the root of the repository"
    if Path(name).suffix == ".toml":
        return f"no command {visible(name)!r}; did you mean `steadyrl train {visible(name)}`?"
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"; did you mean `{near[0]}`?" if near else ""
    return f"no command {visible(name)!r}{hint} There are {', '.join(COMMANDS)}"
