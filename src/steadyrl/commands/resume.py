"""`steadyrl resume RUN`."""

import argparse
from functools import partial
from pathlib import Path

from steadyrl import api
from steadyrl.commands.training import carry_out, refuse_several_processes
from steadyrl.preflight import require_run


def main(argv: list[str]) -> int:
    """Continue a run that was interrupted."""
    parser = argparse.ArgumentParser("steadyrl resume", description="Continue a run that was interrupted.")
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--checkpoint", help="start from this checkpoint instead of the newest, such as step-000020")
    parser.add_argument(
        "--accept-changes", action="store_true", help="continue although data, reward function or model have changed"
    )
    options = parser.parse_args(argv)
    refuse_several_processes()
    require_run(options.run)
    print(f"resuming {options.run}")
    again = partial(api.resume, options.run, checkpoint=options.checkpoint, accept_changes=options.accept_changes)
    return carry_out(options.run, begin=lambda stop, start: again(stop_asked=stop, on_start=start))
