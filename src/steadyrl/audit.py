"""`steadyrl audit`, and the short audit at the start of a run."""

import hashlib
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text

from steadyrl.build import open_pool
from steadyrl.options.own import OwnCode
from steadyrl.preflight import task_fields
from steadyrl.recipe import Recipe
from steadyrl.recipe.building import own_code
from steadyrl.run.progress import Display
from steadyrl.tasks.audit import Finding, Report, Row, audit, audited
from steadyrl.tasks.base import Task
from steadyrl.tasks.build import build_task
from steadyrl.tasks.pool import RewardPool
from steadyrl.tasks.questions import Questions

PROBLEMS = 32
"""Problems that the command tries."""
AT_START = 16
"""Problems that are tried at the start of a run, at most."""
SECONDS = 30.0
"""Time for that; the response that is being verified then is waited for."""
_TOGETHER = 64  # responses in one call of the command
_SHOWN = 70  # characters of a text in the terminal


class Tokenizer(Protocol):
    """What the digest reads of a tokenizer."""

    chat_template: Any

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id."""
        ...


def run(recipe: Recipe, *, as_json: bool, strict: bool) -> int:
    """Audit the task of a recipe and print what was found.

    Returns:
        0 if no junk was paid and every right response was, else 1. With `strict`, 1 also for what is partial or
        doubtful, and where the verifier failed.

    Raises:
        TaskError: the task cannot be built.
    """
    task = build_task(recipe.task.kind, seed=recipe.seed, parameters=task_fields(recipe))
    together = _TOGETHER * recipe.verifier.workers
    with open_pool(recipe, task) as pool, Display().bar("trying right responses and junk"):
        report = audit(task, pool.rewards, problems=PROBLEMS, correct_at=recipe.task.correct_at, together=together)
    if as_json:
        print(json.dumps(report.as_json(), indent=1))
    else:
        show(report, strict=strict)
    return 0 if report.passed(strict=strict) else 1


def at_start(recipe: Recipe, task: Task, pool: RewardPool, tokenizer: Tokenizer) -> list[str]:
    """Warnings about the verifier of a run that is about to begin; none where `verifier.audit` is off.

    An audit that came to its end is remembered in the user's cache folder, by a digest of everything that it rests on.
    """
    if not recipe.verifier.audit:
        return []
    key = digest(recipe, task, tokenizer)
    report = _remembered(key)
    if report is None:
        # a function that remembers its calls must not have seen others when the run begins
        with open_pool(recipe, task) if own_verifier(recipe, task) else nullcontext(pool) as auditors:
            found = audit(
                task,
                auditors.rewards,
                problems=AT_START,
                correct_at=recipe.task.correct_at,
                together=recipe.verifier.workers,
                seconds=SECONDS,
            )
        report = found.as_json()
        if found.complete:
            _remember(key, report)
    return list(_warnings(recipe, report))


def own_verifier(recipe: Recipe, task: Task) -> OwnCode | None:
    """Where the user's own verifier is, or None where the task has one of ours."""
    return task.own_file if isinstance(task, Questions) else own_code(recipe.task)


def digest(recipe: Recipe, task: Task, tokenizer: Tokenizer) -> str:
    """A digest of the problems, the reward function with the Python files of its folder, tokenizer and software."""
    parts: list[Any] = [recipe.seed, recipe.task.model_dump(mode="json"), recipe.verifier.time_limit, AT_START]
    parts += [importlib.metadata.version(name) for name in ("reasoning-gym", "math-verify", "sympy")]
    sources = [path for path in Path(__file__).parent.glob("tasks/*") if path.is_file()]
    own = own_verifier(recipe, task)
    if own or isinstance(task, Questions):  # the problems of the other tasks follow from seed and section
        parts += [repr(task.example("train", index)) for index in audited(task.size("train"), AT_START)]
    if own:
        sources += own.file.parent.glob("*.py")
    parts += [[str(path), hashlib.sha256(path.read_bytes()).hexdigest()] for path in sorted(sources)]
    parts += ["\0".join(sorted(tokenizer.get_vocab())), tokenizer.chat_template]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def show(report: Report, *, strict: bool) -> None:
    """Print the table of what was tried, an example of each finding, and the counts."""
    console = Console(highlight=False)
    table = Table(
        "", "tried", "paid", "faults", "doubtful", "partial", "failed", "best", box=None, padding=(0, 1, 0, 0)
    )
    for row in report.rows:
        counts = (row.tried, row.paid, row.counts, row.doubtful, row.partial, row.failed)
        name = row.form if row.half == "junk" else f"right: {row.form}"
        best = "–" if row.highest is None else f"{row.highest:g}"
        table.add_row(Text(name), *(Text(str(count) if count else "·") for count in counts), Text(best))
    console.print(table)
    for row in report.rows:
        if row.example is not None:
            console.print(Text(_described(row, row.example)), soft_wrap=True)
    console.print(Text(_summary(report, strict=strict)), soft_wrap=True)


def _described(row: Row, example: Finding) -> str:
    """One finding in words; what the model or the data wrote is escaped and cut."""
    earned = f"earned {example.reward:g}" if example.reward is not None else f"has no reward: {example.failure}"
    what = "junk" if row.half == "junk" else "right"
    return (
        f"{what}, {row.form}: to {shown(example.question)} (answer {shown(example.answer)}) the response "
        f"{shown(example.response)} {earned}"
    )


def _summary(report: Report, *, strict: bool) -> str:
    lines = [
        f"{report.problems} problems; paid means a reward of at least task.correct_at = {report.correct_at:g}",
        f"paid junk: {report.paid_junk}, unpaid right responses: {report.unpaid_right}, "
        f"doubtful, partial or failed: {report.doubts}{'' if strict else ' (counted with --strict)'}",
    ]
    if report.without_reference:
        lines.append(f"{report.without_reference} problems have no reference answer: right responses were not tried")
    if not report.unpaid_right and any(row.half == "right" and row.paid < row.tried for row in report.rows):
        lines.append(
            "Your reward function has to pay one right form of each problem; the forms that it refuses are no fault"
        )
    if any(row.counts and row.example is not None and not row.example.response for row in report.rows):
        lines.append("The empty response is paid: raise task.correct_at, or mend the reward function")
    if report.unpaid_right:
        highest = max((row.highest for row in report.rows if row.highest is not None), default=0.0)
        if highest < report.correct_at:
            lines.append(f"No reward reached task.correct_at; the highest was {highest:g}. Lower task.correct_at")
        else:
            lines.append(
                "If your reward function wants another form of answer, name a column of right responses in "
                "task.solution_column"
            )
    return "\n".join(lines)


def shown(text: str) -> str:
    """A text in quotes for the terminal: cut, and without characters that would act on it."""
    cut = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    inside = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
    return f"`{inside}`"


def _warnings(recipe: Recipe, report: Mapping[str, Any]) -> Iterator[str]:
    """What a user must hear before the run trains on these rewards."""
    if recipe.task.kind == "reasoning_gym":
        from steadyrl.tasks.gym_table import other_version

        if (other := other_version()) is not None:
            yield other
    faults = [row for row in report["rows"] if row["counts"]]
    for half, what in (("junk", "the verifier pays for junk"), ("right", "the verifier does not pay right responses")):
        rows = [row for row in faults if row["half"] == half]
        if rows:
            forms = ", ".join(row["form"] for row in rows[:3]) + (", …" if len(rows) > 3 else "")
            example = rows[0]["example"]
            yield (
                f"{what}: {sum(row['counts'] for row in rows)} responses ({forms}); to {shown(example['question'])} "
                f"the response {shown(example['response'])} earned {example['reward']}. `steadyrl audit` shows all; "
                "verifier.audit = false turns this check off"
            )
    if not report["complete"]:
        yield (
            f"the audit of the verifier was stopped after {SECONDS:g} s with {report['problems']} problems tried; "
            "`steadyrl audit` takes the time it needs"
        )


def _cache() -> Path:
    """Where audits are remembered: STEADYRL_CACHE, else the user's cache folder."""
    if own := os.environ.get("STEADYRL_CACHE"):
        return Path(own) / "audit"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "steadyrl" / "audit"


def _remembered(key: str) -> Mapping[str, Any] | None:
    """The report of an earlier audit, or None; a file that cannot be read is none."""
    try:
        report = json.loads((_cache() / f"{key}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: there is no home folder
        return None
    return report if isinstance(report, dict) and {"rows", "complete", "problems"} <= report.keys() else None


def _remember(key: str, report: Mapping[str, Any]) -> None:
    """Keep a report. Where there is no room for it, the next run audits once more."""
    try:
        folder = _cache()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".part", delete=False, encoding="utf-8") as file:
            json.dump(report, file)
        os.replace(file.name, folder / f"{key}.json")
    except (OSError, RuntimeError):
        return
