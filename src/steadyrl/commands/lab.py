"""`steadyrl lab`."""

import argparse
import sys
from pathlib import Path


def main(argv: list[str]) -> int:
    """`steadyrl lab run FIGURE` and `steadyrl lab report`."""
    parser = argparse.ArgumentParser("steadyrl lab", description="Experiments with arms and seeds; see lab/*.toml.")
    parser.add_argument("--lab", type=Path, default=Path("lab"), help="folder of the figures (default: lab)")
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="make the runs of a figure that have no result yet")
    runs.add_argument("figure", help="stem of a file in lab/, such as fig4-calm")
    runs.add_argument("--arms", nargs="+", default=[], help="some arms only")
    runs.add_argument("--seeds", nargs="+", type=int, default=[], help="some seeds only")
    runs.add_argument("--jobs", type=int, default=2, help="runs side by side (default: 2)")
    report = commands.add_parser("report", help="write docs/replication.md and its pictures from lab/results")
    report.add_argument("--docs", type=Path, default=Path("docs"), help="where to (default: docs)")
    options = parser.parse_args(argv)
    if options.command == "report":
        from steadyrl.lab.report import write

        print("\n".join(map(str, write(options.lab, options.docs))))
        return 0
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: at least 1")
    from steadyrl.lab.figure import load_figure
    from steadyrl.lab.runs import LabError, run_figure

    figure = load_figure(options.lab, options.figure)
    try:
        run_figure(options.lab, figure, arms=options.arms, seeds=options.seeds, jobs=options.jobs)
    except LabError as error:
        print(f"steadyrl: {error}", file=sys.stderr)
        return 1
    return 0
