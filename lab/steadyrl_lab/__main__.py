"""The command line of the lab: `python -m steadyrl_lab run FIGURE` and `python -m steadyrl_lab report`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from steadyrl.errors import UserError
from steadyrl.terminal import visible
from steadyrl_lab.figure import load_figure
from steadyrl_lab.report import write
from steadyrl_lab.runs import LabError, run_figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command of the lab.

    Returns:
        0 if it went well, 1 if a run failed, 2 for a mistake of the user's, 130 after Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    try:
        options.work(options)
    except UserError as error:
        print(f"steadyrl_lab: {visible(str(error), lines=True)}", file=sys.stderr)
        return 2
    except LabError as error:
        print(f"steadyrl_lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("steadyrl_lab: interrupted; the same command continues where its runs were saved", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m steadyrl_lab", description="Experiments with arms and seeds; see lab/figures."
    )
    parser.add_argument("--lab", type=Path, default=Path("lab"), help="folder of the lab (default: lab)")
    commands = parser.add_subparsers(required=True)
    runs = commands.add_parser("run", help="make the runs of a figure that have no result yet")
    runs.add_argument("figure", help="stem of a file in lab/figures, such as fig4-calm")
    runs.add_argument("--arms", nargs="+", default=[], help="some arms only")
    runs.add_argument("--seeds", nargs="+", type=int, default=[], help="some seeds only")
    runs.add_argument("--jobs", type=_positive, default=2, help="runs side by side (default: 2)")
    runs.set_defaults(work=_run)
    report = commands.add_parser("report", help="pack lab/results; write docs/replication.md and its pictures")
    report.add_argument("--docs", type=Path, default=Path("docs"), help="where to (default: docs)")
    report.set_defaults(work=_report)
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: a whole number of at least 1 is needed")
    return int(text)


def _run(options: argparse.Namespace) -> None:
    figure = load_figure(options.lab, options.figure)
    run_figure(options.lab, figure, arms=options.arms, seeds=options.seeds, jobs=options.jobs)


def _report(options: argparse.Namespace) -> None:
    print("\n".join(map(str, write(options.lab, options.docs))))


if __name__ == "__main__":
    raise SystemExit(main())
