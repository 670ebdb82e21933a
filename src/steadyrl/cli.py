"""The command line: train, resume, eval, show, gap, audit, conformance, lab."""

import argparse
import contextlib
import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import tyro

from steadyrl.config import VARIANTS, PretrainedModel, Recipe, RecipeError, load
from steadyrl.errors import NO_ROOM, RunStopped, UserError
from steadyrl.measure.trouble import unreached
from steadyrl.renamed import new_field
from steadyrl.terminal import tell, visible

T = TypeVar("T", bound=Recipe)
TRUST = "--trust-remote-code"

USAGE = """steadyrl COMMAND …

  train RECIPE [--run DIR] [--dry-run] [--section.field value …]
  resume RUN [--checkpoint step-000020] [--accept-changes]
  eval CHECKPOINT [--trust-remote-code] [--section.field value …]
  show RUN
  gap RUN [--responses 64]
  audit RECIPE [--json] [--strict] [--section.field value …]
  conformance --model FAMILY_OR_PATH [--weights] | --all
  lab run FIGURE [--arms …] [--seeds …] [--jobs N] | lab report

Each command has a --help; that of `train` and `eval` shows every field of the recipe with its resolved value."""


class TrainFlags(Recipe):
    """What `train` can be told beside the recipe."""

    run: Path | None = None
    """Run directory; by default runs/<name of the recipe>."""
    dry_run: bool = False
    """Print what would run and how much memory it needs, and stop."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 if it went well, 1 if a run had to stop, 2 for a mistake of the user's, 130 and 143 where Ctrl-C and SIGTERM
        ended it early.
    """
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except BrokenPipeError:  # the reader of the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at the end
        return 0


def _run(arguments: Sequence[str]) -> int:
    argv = list(arguments)
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": train_command,
        "resume": resume_command,
        "eval": eval_command,
        "show": show_command,
        "gap": gap_command,
        "audit": audit_command,
        "conformance": conformance_command,
        "lab": lab_command,
    }
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    if argv[0] not in commands:
        print(f"steadyrl: no command {argv[0]!r}; it is one of {', '.join(commands)}", file=sys.stderr)
        return 2
    try:
        if argv[0] in ("train", "resume"):
            _refuse_several_processes()
        return commands[argv[0]](argv[1:])
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


def _refuse_several_processes() -> None:
    """Refuse a launcher that starts the command more than once: every process would train the whole run.

    Raises:
        UserError: one of several processes.
    """
    sizes = {"WORLD_SIZE": "", "SLURM_STEP_NUM_TASKS": "SLURM_PROCID", "OMPI_COMM_WORLD_SIZE": "", "PMI_SIZE": ""}
    for name, also in sizes.items():
        size = os.environ.get(name, "").strip()
        if size.isdigit() and int(size) > 1 and (not also or also in os.environ):
            raise UserError(
                f"{name} = {size}: this command was started as one of {size} processes, and one process trains. "
                "Start it once, without torchrun, mpirun or several tasks of srun"
            )


def train_command(argv: list[str]) -> int:
    """`steadyrl train RECIPE`."""
    path, rest = _first(argv, "train RECIPE [flags]", "RECIPE is a TOML file, such as recipes/demo.toml")
    flags = _with_flags(TrainFlags, load(path), rest, f"steadyrl train {path}")
    recipe = _recipe(flags)
    target = flags.run or Path("runs") / path.stem
    if flags.dry_run:
        from steadyrl.plan import describe

        print(describe(recipe, run=target))
        return 0
    from steadyrl.run.directory import Run
    from steadyrl.run.inputs import inputs_of

    Run.refuse_existing(target)
    return _train(recipe, lambda ready: Run.create(target, ready.recipe, inputs=inputs_of(ready.recipe, ready.task)))


def resume_command(argv: list[str]) -> int:
    """`steadyrl resume RUN`."""
    parser = argparse.ArgumentParser("steadyrl resume", description="Continue a run that was interrupted.")
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--checkpoint", help="start from this checkpoint instead of the newest, such as step-000020")
    parser.add_argument(
        "--accept-changes", action="store_true", help="continue although data, reward function or model have changed"
    )
    options = parser.parse_args(argv)
    from steadyrl.prepare import Prepared
    from steadyrl.run.directory import Run
    from steadyrl.run.inputs import inputs_of

    run = Run.reopen(options.run, start_from=options.checkpoint)

    def compare(ready: Prepared) -> None:
        now = inputs_of(ready.recipe, ready.task)
        if warning := run.compare_inputs(ready.recipe, now, accept=options.accept_changes):
            print(f"steadyrl: {visible(warning, lines=True)}", file=sys.stderr)

    print(f"resuming {options.run}: {run.recipe.steps} steps in all")
    try:
        return _train(run.recipe, lambda ready: run, before=compare)
    finally:
        run.close()


def eval_command(argv: list[str]) -> int:
    """`steadyrl eval CHECKPOINT`."""
    path, rest = _first(argv, "eval CHECKPOINT [flags]", "CHECKPOINT is a run directory or one of its checkpoints")
    folder, recipe = _checkpoint(path)
    trusted = _trusted(recipe, path, TRUST in rest)
    rest = [flag for flag in rest if flag != TRUST]
    pretrained = PretrainedModel(path=str(folder / "model"), trust_remote_code=trusted)
    recipe = recipe.model_copy(update={"model": pretrained, "cold_start": None, "trackers": ()})
    recipe = _with_flags(Recipe, recipe, rest, f"steadyrl eval {path}")
    from transformers.utils import logging

    from steadyrl.parts import prepared_parts

    logging.disable_progress_bar()
    with prepared_parts(recipe) as parts:
        found = parts.evaluator.evaluate(every_mode=True)
    parts.evaluator.require(found)
    _print_evaluation(found.rows)
    if warning := unreached(found.rows, correct_at=recipe.task.correct_at):
        tell(warning)
    return 0


def audit_command(argv: list[str]) -> int:
    """`steadyrl audit RECIPE`."""
    parser = argparse.ArgumentParser(
        "steadyrl audit",
        description="Try right responses and junk on a few dozen problems, and show what is paid. The exit status is "
        "1 where junk is paid or a right response is not. Fields of the recipe are changed as with `train`.",
    )
    parser.add_argument("recipe", type=Path, help="a TOML file, or the recipe.json of a run")
    parser.add_argument("--json", action="store_true", help="print the counts and the rows as JSON")
    parser.add_argument("--strict", action="store_true", help="also count what is partial, doubtful or failed")
    options, rest = parser.parse_known_args(argv)
    recipe = _with_flags(Recipe, load(options.recipe), rest, f"steadyrl audit {options.recipe}")
    from steadyrl.audit import run

    return run(recipe, as_json=options.json, strict=options.strict)


def show_command(argv: list[str]) -> int:
    """`steadyrl show RUN`."""
    parser = argparse.ArgumentParser("steadyrl show", description="Rebuild the report of a run and print its path.")
    parser.add_argument("run", type=Path, help="run directory, also of a run in progress")
    parser.add_argument("--picture", type=Path, help="also write one wide picture (SVG) to this file")
    options = parser.parse_args(argv)
    from steadyrl.report.page import figure_overview, write_report

    report = write_report(options.run)
    if options.picture is not None:
        try:
            figure_overview(options.run, options.picture)
        except OSError as error:
            raise UserError(f"--picture {options.picture} cannot be written: {error.strerror}") from error
    _print_accuracy(options.run)
    print(f"the report is {report}")
    return 0


def gap_command(argv: list[str]) -> int:
    """`steadyrl gap RUN`."""
    parser = argparse.ArgumentParser(
        "steadyrl gap",
        description="Compare the token-level gradient with the sequence-level one before each update of one global "
        "step, which is repeated in memory from the newest checkpoint; nothing of the run is changed.",
    )
    parser.add_argument("run", type=Path, help="run directory, or one of its checkpoints")
    parser.add_argument("--responses", type=int, default=64, help="responses of a mini-batch that are compared (64)")
    parser.add_argument(TRUST, action="store_true", help="run the Python code of the run's own model")
    options = parser.parse_args(argv)
    folder, recipe = _checkpoint(options.run)
    _trusted(recipe, options.run, options.trust_remote_code)
    from transformers.utils import logging

    from steadyrl.gap import compare, table

    logging.disable_progress_bar()
    rows = list(compare(folder, recipe, responses=options.responses))
    print(
        f"{folder}, replay {recipe.update.replay}: both factors and Δ over each mini-batch, gradients over `responses`"
    )
    print(table(rows))
    return 0


def conformance_command(argv: list[str]) -> int:
    """`steadyrl conformance --model FAMILY_OR_PATH`."""
    parser = argparse.ArgumentParser(
        "steadyrl conformance", description="Check whether Routing Replay is exact for a mixture-of-experts model."
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--model", help="a family such as qwen3_moe, or a saved model, which is built small from its config"
    )
    which.add_argument(
        "--all", action="store_true", help="every family that is listed; prints docs/routing-families.md"
    )
    parser.add_argument(
        "--weights", action="store_true", help="check the saved model itself, weights and size included"
    )
    options = parser.parse_args(argv)
    if options.all and options.weights:
        parser.error("--weights needs --model with the path of a saved model")
    from steadyrl.conformance.report import run

    return run(options.model, weights=options.weights)


def lab_command(argv: list[str]) -> int:
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


def _first(argv: list[str], usage: str, meaning: str) -> tuple[Path, list[str]]:
    """The positional argument that must come first, and the rest."""
    if not argv or argv[0].startswith("-"):
        asked = bool(argv) and argv[0] in ("-h", "--help")
        print(f"usage: steadyrl {usage}\n{meaning}", file=sys.stdout if asked else sys.stderr)
        raise SystemExit(0 if asked else 2)
    return Path(argv[0]), argv[1:]


def _with_flags(kind: type[T], recipe: Recipe, rest: list[str], program: str) -> T:
    """The recipe with single values changed by flags."""
    _refuse_old_names(rest)
    _refuse_variants(rest)
    default = kind(**{name: getattr(recipe, name) for name in Recipe.model_fields})
    return tyro.cli(kind, prog=program, args=rest, default=default, config=(tyro.conf.AvoidSubcommands,))


def _refuse_old_names(rest: Sequence[str]) -> None:
    """Reject a flag that an earlier version had.

    Raises:
        RecipeError: it is one; the message has its name of today.
    """
    for flag in rest:
        name = flag.partition("=")[0].removeprefix("--")
        if flag.startswith("--") and (new := new_field(name.replace("-", "_"))):
            raise RecipeError(f"--{name}: unknown flag; it is now called --{new}")


def _refuse_variants(rest: Sequence[str]) -> None:
    """A flag changes a value; what a section is, its kind or name, is for the recipe to say.

    Raises:
        RecipeError: a flag names the kind or name of a section; the message has those that there are.
    """
    for flag in rest:
        section, _, field = flag.lstrip("-").partition("=")[0].partition(".")
        if flag.startswith("--") and (section, field) in VARIANTS:
            raise RecipeError(
                f"{flag.partition('=')[0]} cannot be set by a flag; set it in the recipe with its fields, as "
                f"[{section}] {field} = …; known: {', '.join(VARIANTS[section, field])}"
            )


def _recipe(flags: TrainFlags) -> Recipe:
    return Recipe(**{name: getattr(flags, name) for name in Recipe.model_fields})


def _train(
    recipe: Recipe, open_run: Callable[[Any], Any], *, before: Callable[[Any], None] = lambda ready: None
) -> int:
    """Train, and say at the end what came of it.

    Args:
        recipe: what is asked for.
        open_run: makes or opens the run directory; it gets what `session.prepare` found out.
        before: looks at the same, before any weight is loaded.
    """
    from transformers.utils import logging

    from steadyrl.audit import at_start
    from steadyrl.consistency import recipe_warnings
    from steadyrl.guard import TrainingStopped
    from steadyrl.loop import train
    from steadyrl.parts import open_parts
    from steadyrl.prepare import prepare

    logging.disable_progress_bar()  # one bar is enough: transformers shows its own at every checkpoint
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        asked = stack.enter_context(_one_interrupt())
        ready = stack.enter_context(prepare(recipe))
        for warning in (*recipe_warnings(recipe), *ready.warnings):
            tell(warning)
        before(ready)
        parts = stack.enter_context(open_parts(ready))
        rollouter, trainer = parts.rollouter, parts.trainer
        audited = at_start(ready.recipe, rollouter.task, rollouter.pool, rollouter.tokenizer)
        for warning in (*trainer.policy.warnings, *audited):
            tell(warning)
        run = open_run(ready)
        try:
            step, taken = train(ready.recipe, rollouter, trainer, parts.evaluator, run, stop_asked=lambda: bool(asked))
        except TrainingStopped as error:
            raise TrainingStopped(f"{error}. {_way_on(run.path)}") from error
        except UserError as error:
            raise UserError(f"{error}. {_way_on(run.path)}") from error
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt(*asked[-1:]) from interrupt
        finally:
            run.close()
    if recipe.steps and not taken and step >= recipe.steps:
        print(f"all {recipe.steps} steps had been taken; nothing was left to train")
    _print_accuracy(run.path)
    seconds = time.monotonic() - started
    print(f"{seconds:.0f} s; the run is in {run.path}, its report is {run.path / 'report.html'}")
    if step >= recipe.steps:
        return 0
    print(
        f"steadyrl: stopped at step {step} of {recipe.steps}; continue with `steadyrl resume {run.path}`",
        file=sys.stderr,
    )
    return 128 + asked[-1]


def _way_on(run: Path) -> str:
    return f"To change a setting, edit {run / 'recipe.json'}, then run `steadyrl resume {run}`"


@contextlib.contextmanager
def _one_interrupt() -> Iterator[list[int]]:
    """The first Ctrl-C (or a scheduler's SIGTERM) asks for a stop after the step; the second interrupts at once.

    Yields:
        The signals that came, in order.
    """
    asked: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        asked.append(signum)
        if len(asked) > 1:
            raise KeyboardInterrupt(signum)
        print("stopping after this step; press Ctrl-C again to stop at once", file=sys.stderr)

    before = {one: signal.signal(one, note) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _trusted(recipe: Recipe, path: Path, allowed: bool) -> bool:
    """Whether the model's own Python code may run. A run directory may come from somebody else: it cannot say so.

    Raises:
        RecipeError: the model needs its code, and the command line does not allow it.
    """
    asked = isinstance(recipe.model, PretrainedModel) and recipe.model.trust_remote_code
    if asked and not allowed:
        raise RecipeError(
            f"the recipe of {path} runs its model's own Python code (model.trust_remote_code). "
            f"If you trust it, add {TRUST}"
        )
    return asked


def _checkpoint(path: Path) -> tuple[Path, Recipe]:
    """A checkpoint's folder, verified, and the recipe of its run."""
    from steadyrl.run import checkpoint

    run = path if (path / "recipe.json").is_file() else path.absolute().parent.parent
    if not (run / "recipe.json").is_file():
        raise RecipeError(f"{path} is neither a run directory nor a checkpoint of one (RUN/checkpoints/step-…)")
    known = [folder.name for folder in checkpoint.listed(run / "checkpoints")]
    name = path.name if path != run else known[-1] if known else "checkpoint yet"
    if name not in known:
        raise RecipeError(f"{run} has no {name}; it has {known}")
    folder = run / "checkpoints" / name
    checkpoint.verify(folder)
    return folder, load(run / "recipe.json")


def _print_evaluation(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        several = [f"  {name} {row[name]:.3f}" for name in row if "@" in name]
        size = f"{row['prompts']} prompts × {row['samples']}"
        print(f"{_where(row)} accuracy {_with_interval(row)}  {_reward(row)}{''.join(several)}  {size}")


def _print_accuracy(path: Path) -> None:
    """Accuracy and mean reward before and now, of every set, mode and precision that was looked at both times."""
    from steadyrl.report.reading import is_partial
    from steadyrl.run.logs import read_jsonl

    rows = read_jsonl(path / "eval.jsonl") if (path / "eval.jsonl").exists() else []
    if not rows:
        print("no evaluation yet")
        return
    last = max(row["step"] for row in rows)
    print(f"held-out accuracy, step 0 → step {last}, with 95% intervals")
    first = {_where(row): row for row in rows if row["step"] == 0}
    for after in (row for row in rows if row["step"] == last):
        if before := first.get(_where(after)):
            print(f"  {_where(after)} {_with_interval(before)} → {_with_interval(after)}")
            if is_partial(before) or is_partial(after):
                print(f"  {'':17} {_reward(before)} → {_reward(after)}")


def _where(row: Mapping[str, Any]) -> str:
    """Mode and precision, and the set where it is not the held-out one."""
    name = row.get("set", "held_out")
    return f"{row['mode']:8} {row['precision']:8}" + (f" {name}" if name != "held_out" else "")


def _reward(row: Mapping[str, Any]) -> str:
    return f"reward {_with_interval(row, 'reward', 'reward_low', 'reward_high')}"


def _with_interval(row: Mapping[str, Any], *names: str) -> str:
    """A mean and its interval; a dash for what is not defined."""
    value, low, high = (row.get(name) for name in names or ("accuracy", "low", "high"))
    return f"{_number(value)} [{_number(low)}, {_number(high)}]"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    sys.exit(main())
