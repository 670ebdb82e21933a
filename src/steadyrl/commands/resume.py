"""`steadyrl resume RUN`."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from steadyrl.commands.start import import_torch
from steadyrl.commands.training import carry_out, refuse_several_processes
from steadyrl.preflight import require_run
from steadyrl.terminal import visible

if TYPE_CHECKING:
    from steadyrl.prepare import Prepared


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
    import_torch()
    from steadyrl.run.directory import Run
    from steadyrl.run.inputs import inputs_of

    run = Run.reopen(options.run, start_from=options.checkpoint)

    def compare(ready: "Prepared") -> None:
        now = inputs_of(ready.recipe, ready.task)
        if warning := run.compare_inputs(ready.recipe, now, accept=options.accept_changes):
            print(f"steadyrl: {visible(warning, lines=True)}", file=sys.stderr)

    print(f"resuming {options.run}: {run.recipe.steps} steps in all")
    try:
        return carry_out(run.recipe, options.run, open_run=lambda ready: run, before=compare)
    finally:
        run.close()
