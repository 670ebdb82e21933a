"""`steadyrl show RUN`."""

import argparse
from pathlib import Path

from steadyrl.commands.accuracy import print_accuracy
from steadyrl.errors import UserError
from steadyrl.run.progress import Display


def main(argv: list[str]) -> int:
    """Rebuild the report of a run."""
    parser = argparse.ArgumentParser("steadyrl show", description="Rebuild the report of a run and print its path.")
    parser.add_argument("run", type=Path, help="run directory, also of a run in progress")
    parser.add_argument("--picture", type=Path, help="also write one wide picture (SVG) to this file")
    options = parser.parse_args(argv)
    from steadyrl.report.page import figure_overview, write_report

    with Display().bar("drawing the report"):
        report = write_report(options.run)
        if options.picture is not None:
            try:
                figure_overview(options.run, options.picture)
            except OSError as error:
                raise UserError(f"--picture {options.picture} cannot be written: {error.strerror}") from error
    print_accuracy(options.run)
    print(f"the report is {report}")
    return 0
