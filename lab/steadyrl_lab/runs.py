"""Run the arms of a figure: the cold starts first, then every arm and seed that has no result yet, a few side by side.

Each run is an ordinary `steadyrl train` in a separate process. What was killed is resumed from its checkpoint, what
has finished is skipped, and a run whose recipe has changed since is refused: all arms of a figure share one regime.
"""

import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from steadyrl.errors import UserError
from steadyrl.recipe import Recipe, RecipeError, load
from steadyrl.run.logs import write_atomically
from steadyrl_lab.archive import ResultError, collect, finished, store
from steadyrl_lab.figure import Figure, Recipes, arm_recipe, cold_name, cold_recipe
from steadyrl_lab.result import Result, measure

T = TypeVar("T")


class LabError(RuntimeError):
    """Runs that failed for a reason that is none of theirs to report. The message names their logs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One run to make."""

    figure: Figure
    arm: str
    seed: int
    recipes: Recipes
    folder: Path
    cold_folder: Path


def run_figure(lab: Path, figure: Figure, *, arms: Sequence[str], seeds: Sequence[int], jobs: int) -> None:
    """Make what is missing, and say a line for each run.

    Args:
        lab: folder of figures, regimes, results and runs.
        figure: the figure.
        arms: names of its arms; none: all.
        seeds: seeds; none: the figure's.
        jobs: runs side by side.

    Raises:
        RecipeError: an arm or a seed is not the figure's, or a recipe cannot be run.
        ResultError: a stored run was made with another recipe.
        LabError: a process failed.
    """
    for given, known in ((arms, figure.arms), (seeds, figure.seeds)):
        if unknown := [one for one in given if one not in known]:
            raise RecipeError(f"{figure.name} has no {unknown[0]!r}; it has {list(known)}")
    done = finished(lab, figure)
    todo = [
        _job(lab, figure, arm, seed)
        for seed in dict.fromkeys(seeds or figure.seeds)
        for arm in dict.fromkeys(arms or figure.arms)
        if (arm, seed) not in done
    ]
    if not todo:
        print(f"every run asked for has its result in {lab / 'results'} or {lab / 'runs' / figure.name}")
    colds = {job.cold_folder: job for job in todo if not _model(job.cold_folder).is_dir()}
    failures = _side_by_side(jobs, colds.values(), _cold_start)
    ready = [job for job in todo if _model(job.cold_folder).is_dir()]
    failures += _side_by_side(jobs, ready, lambda job: _run(lab, job))
    if failures:
        raise LabError("\n".join(map(str, failures)))


def _job(lab: Path, figure: Figure, arm: str, seed: int) -> Job:
    """A run to make."""
    cold_folder = lab / "runs" / "cold" / f"{cold_name(figure, arm)}-{seed}"
    folder = lab / "runs" / figure.name / f"{arm}-{seed}"
    recipes = Recipes(
        cold=cold_recipe(lab, figure, arm, seed),
        own=arm_recipe(lab, figure, arm, seed, model=_model(cold_folder)),
    )
    _require_recipe(cold_folder, recipes.cold)
    _require_recipe(folder, recipes.own)
    return Job(figure=figure, arm=arm, seed=seed, recipes=recipes, folder=folder, cold_folder=cold_folder)


def _require_recipe(folder: Path, recipe: Recipe) -> None:
    """Refuse to continue, or to start from, a run of another recipe.

    Raises:
        ResultError: the folder holds one.
    """
    if (folder / "recipe.json").is_file() and load(folder / "recipe.json") != recipe:
        raise ResultError(f"{folder} holds a run of another recipe; delete it to run again")


def _model(cold_folder: Path) -> Path:
    """The model that a cold start leaves."""
    return cold_folder / "checkpoints" / "step-000000" / "model"


def _cold_start(job: Job) -> str:
    folder = job.cold_folder
    if (status := _train(job.recipes.cold, folder)) != 0:
        raise LabError(f"the cold start {folder} ended with status {status}; see {folder}.log")
    if not _model(folder).is_dir():
        raise LabError(f"{folder} was asked to stop before its last step; run the figure again to continue")
    return f"cold start {folder.name}"


def _run(lab: Path, job: Job) -> str:
    before = _incident(job.folder)
    status = _train(job.recipes.own, job.folder)
    stopped = status == 1 and _incident(job.folder) not in (None, before)  # a crash ends with 1 as well
    if status != 0 and not stopped:
        raise LabError(f"{job.folder} ended with status {status}; see {job.folder}.log")
    result = collect(
        job.folder,
        figure=job.figure.name,
        arm=job.arm,
        seed=job.seed,
        recipe=job.recipes.dump(),
        minibatches=job.figure.minibatches,
        replay=job.recipes.own.update.replay,
        status="stopped" if stopped else "finished",
    )
    if not stopped and len(result.steps["reward/mean"]) < job.recipes.own.steps:  # a signal ends a run well, but early
        raise LabError(f"{job.folder} was asked to stop before its last step; run the figure again to continue")
    store(lab, result)
    return _line(result)


def _incident(folder: Path) -> int | None:
    """When the run was last stopped over updates that were not finite, in nanoseconds; None: never."""
    path = folder / "incident" / "batch.safetensors"
    return path.stat().st_mtime_ns if path.is_file() else None


def _line(result: Result) -> str:
    at = result.collapsed_at
    came = "stable" if at is None else f"collapsed at update {(at + 1) * result.minibatches}"
    first = result.accuracy()[0][1]
    return (
        f"{result.figure} {result.arm} seed {result.seed}: {first:.3f} → {measure(result, 'final'):.3f}, "
        f"{came}, {result.seconds:.0f} s"
    )


def _train(recipe: Recipe, folder: Path) -> int:
    """Train, or go on training, in another process; its words go to a log beside the run."""
    program = [sys.executable, "-m", "steadyrl"]
    if (folder / "recipe.json").is_file():
        command = [*program, "resume", str(folder)]
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
        asked = folder.with_name(f"{folder.name}.json")
        write_atomically(asked, recipe.model_dump_json(indent=2))
        command = [*program, "train", str(asked), "--run", str(folder)]
    with folder.with_name(f"{folder.name}.log").open("ab") as log:
        return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL).returncode


def _side_by_side(jobs: int, items: Iterable[T], work: Callable[[T], str]) -> list[Exception]:
    """Do all, `jobs` at a time, and say a line for each; what failed, when all are through."""
    failures: list[Exception] = []

    def one(item: T) -> None:
        try:
            print(work(item), flush=True)
        except (LabError, UserError) as error:
            failures.append(error)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, items))
    return failures
