"""Run the arms of a figure: the cold starts first, then every arm and seed that has no result yet, a few side by side.

Each run is an ordinary `steadyrl train` in a process of its own. What was killed is resumed from its checkpoint, what
has finished is skipped, and a run whose recipe has changed since is refused: all arms of a figure share one regime.
"""

import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from steadyrl.config import Recipe, RecipeError, load
from steadyrl.lab.figure import Figure, arm_recipe, cold_name, cold_recipe, fingerprint
from steadyrl.lab.result import Result, ResultError, collect, load_result, measure, result_path, store
from steadyrl.metrics import write_atomically

T = TypeVar("T")


class LabError(RuntimeError):
    """Runs that failed for a reason that is none of theirs to report. The message names their logs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One run to make."""

    figure: Figure
    arm: str
    seed: int
    recipe: Recipe
    folder: Path
    cold: Recipe
    cold_folder: Path
    fingerprint: str


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
    todo = [
        job for seed in seeds or figure.seeds for arm in arms or figure.arms if (job := _job(lab, figure, arm, seed))
    ]
    colds = {job.cold_folder: job for job in todo if not _model(job.cold_folder).is_dir()}
    _side_by_side(jobs, colds.values(), _cold_start)
    _side_by_side(jobs, todo, lambda job: _run(lab, job))


def _job(lab: Path, figure: Figure, arm: str, seed: int) -> Job | None:
    """A run to make, or None where its result is there."""
    cold_folder = lab / "runs" / "cold" / f"{cold_name(figure, arm)}-{seed}"
    cold, recipe = cold_recipe(lab, figure, arm, seed), arm_recipe(lab, figure, arm, seed, model=_model(cold_folder))
    mark = fingerprint(cold, recipe)
    if (stored := load_result(lab, figure.name, arm, seed)) is not None:
        if stored.fingerprint != mark:
            raise ResultError(
                f"{result_path(lab, figure.name, arm, seed)} was made with another recipe. A change of the regime "
                f"reruns all arms: delete {lab / 'results' / figure.name} and {lab / 'runs' / figure.name}"
            )
        return None
    folder = lab / "runs" / figure.name / f"{arm}-{seed}"
    return Job(
        figure=figure,
        arm=arm,
        seed=seed,
        recipe=recipe,
        folder=folder,
        cold=cold,
        cold_folder=cold_folder,
        fingerprint=mark,
    )


def _model(cold_folder: Path) -> Path:
    """The model that a cold start leaves."""
    return cold_folder / "checkpoints" / "step-000000" / "model"


def _cold_start(job: Job) -> str:
    folder = job.cold_folder
    if (status := _train(job.cold, folder)) != 0:
        raise LabError(f"the cold start {folder} ended with status {status}; see {folder}.log")
    return f"cold start {folder.name}"


def _run(lab: Path, job: Job) -> str:
    status = _train(job.recipe, job.folder)
    stopped = status == 1 and (job.folder / "incident").is_dir()  # a crash ends with 1 as well
    if status != 0 and not stopped:
        raise LabError(f"{job.folder} ended with status {status}; see {job.folder}.log")
    result = collect(
        job.folder,
        figure=job.figure.name,
        arm=job.arm,
        seed=job.seed,
        fingerprint=job.fingerprint,
        minibatches=job.figure.minibatches,
        status="stopped" if stopped else "finished",
    )
    if not stopped and len(result.steps["reward/mean"]) < job.recipe.steps:  # a signal ends a run well, but early
        raise LabError(f"{job.folder} was asked to stop before its last step; run the figure again, and it goes on")
    store(lab, result)
    return _line(result)


def _line(result: Result) -> str:
    at = result.collapsed_at
    came = "stable" if at is None else f"collapsed at update {(at + 1) * result.minibatches}"
    first = result.accuracy()[0][1]
    return (
        f"{result.figure} {result.arm} seed {result.seed}: {first:.3f} → {measure(result, 'final'):.3f}, "
        f"{came}, {result.seconds:.0f} s"
    )


def _train(recipe: Recipe, folder: Path) -> int:
    """Train, or go on training, in another process; its words go to a log beside the run.

    Raises:
        ResultError: the folder holds a run of another recipe.
    """
    program = [sys.executable, "-m", "steadyrl.cli"]
    if (folder / "recipe.json").is_file():
        if load(folder / "recipe.json") != recipe:
            raise ResultError(f"{folder} holds a run of another recipe; delete it, and the run is made anew")
        command = [*program, "resume", str(folder)]
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
        asked = folder.with_name(f"{folder.name}.json")
        write_atomically(asked, recipe.model_dump_json(indent=2))
        command = [*program, "train", str(asked), "--run", str(folder)]
    with folder.with_name(f"{folder.name}.log").open("ab") as log:
        return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL).returncode


def _side_by_side(jobs: int, items: Iterable[T], work: Callable[[T], str]) -> None:
    """Do all, `jobs` at a time, and say a line for each; what fails is told when the others have finished."""
    failures: list[LabError] = []

    def one(item: T) -> None:
        try:
            print(work(item), flush=True)
        except LabError as error:
            failures.append(error)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, items))
    if failures:
        raise LabError("\n".join(map(str, failures)))
