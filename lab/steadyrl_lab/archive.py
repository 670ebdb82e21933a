"""Where finished runs are kept: each in its run directory at first, then all of a figure in one compressed file.

`lab/runs/FIGURE/ARM-SEED/result.json` is written when a run ends, so a lab that is killed loses no finished run.
`pack` moves what the page reads into `lab/results/FIGURE.jsonl.xz`, one line a run, which is in the repository.
"""

import json
import lzma
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from steadyrl.errors import UserError
from steadyrl.recipe import RecipeError
from steadyrl.renamed import translate_recipe
from steadyrl.run.logs import read_jsonl, write_atomically
from steadyrl_lab.alarm import SIGNS
from steadyrl_lab.figure import Figure, changed_fields, load_figure, recipes_of
from steadyrl_lab.result import Result

DRAWN = ("reward/mean", "policy/entropy", "mismatch/k3", "routes/disagreement")
"""Metrics of every step that pictures and rules read, of every run."""
UNDER_R3 = ("replay/k3_natural", "replay/k3_replayed")
"""What rules read of runs with R3."""
ALARMS = tuple(dict.fromkeys(name for name, _ in SIGNS))
"""What alarms read, in figures in which a run collapsed: elsewhere there is nothing to announce."""


class ResultError(UserError):
    """A stored result that does not fit its figure. The message names the file and the way out."""


def collect(run: Path, **facts: Any) -> Result:
    """Read a run directory down to what is kept, numbers to five digits; `facts` are the other fields."""
    rows = read_jsonl(run / "metrics.jsonl")
    names = dict.fromkeys((*DRAWN, *UNDER_R3, *ALARMS))
    steps = {name: [_short(row.get(name)) for row in rows] for name in names}
    looked = [row for row in read_jsonl(run / "eval.jsonl") if row.get("set", "held_out") == "held_out"]
    taken = [row["seconds/step"] for row in rows if row.get("seconds/step") is not None]
    return Result(
        machine=f"{platform.machine()}, torch {torch.__version__}",
        seconds=float(f"{median(taken) * len(taken):.5g}") if taken else 0.0,
        steps={name: column for name, column in steps.items() if name == "reward/mean" or _measured(column)},
        evals=[{name: row[name] for name in ("step", "mode", "precision", "accuracy")} for row in looked],
        **facts,
    )


def _short(value: Any) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _measured(column: Iterable[float | None]) -> bool:
    return any(value is not None for value in column)


def store(lab: Path, result: Result) -> None:
    """Write the record of a run into its directory, atomically."""
    path = lab / "runs" / result.figure / f"{result.arm}-{result.seed}" / "result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, _line(result))


def pack(lab: Path, figure: str) -> None:
    """Write the finished runs of a figure into its compressed file; the same runs give the same bytes."""
    runs = _found(lab, figure)
    collapsed = any(run.collapsed_at is not None for run in runs.values())
    kept = [_kept(runs[key], with_alarms=collapsed) for key in sorted(runs)]
    path = _packed(lab, figure)
    if not kept or (path.exists() and kept == _read(path)):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(lzma.compress("".join(map(_line, kept)).encode(), preset=9 | lzma.PRESET_EXTREME))
    os.replace(part, path)


def _kept(run: Result, *, with_alarms: bool) -> Result:
    """The run with the columns that something reads."""
    read = (*DRAWN, *(UNDER_R3 if run.replay == "R3" else ()), *(ALARMS if with_alarms else ()))
    return replace(run, steps={name: column for name, column in run.steps.items() if name in read})


def _packed(lab: Path, figure: str) -> Path:
    return lab / "results" / f"{figure}.jsonl.xz"


def _line(result: Result) -> str:
    return json.dumps(asdict(result), allow_nan=False, separators=(",", ":")) + "\n"


def _read(path: Path) -> list[Result]:
    try:
        data = path.read_bytes()
        text = lzma.decompress(data) if path.suffix == ".xz" else data
        runs = [Result(**json.loads(line)) for line in text.splitlines()]
    except (lzma.LZMAError, ValueError, TypeError) as error:
        raise ResultError(f"{path} is damaged: {error}; restore it, or delete it to run again") from error
    for recipe in (recipe for run in runs for recipe in run.recipe.values()):
        translate_recipe(recipe)
    return runs


def _found(lab: Path, figure: str) -> dict[tuple[str, int], Result]:
    """The finished runs of a figure by arm and seed; one in a run directory replaces the packed one."""
    files = [_packed(lab, figure), *sorted((lab / "runs" / figure).glob("*/result.json"))]
    runs = [run for path in files if path.exists() for run in _read(path)]
    return {(run.arm, run.seed): run for run in runs}


def finished(lab: Path, figure: Figure) -> dict[tuple[str, int], Result]:
    """The runs of a figure that have a result, by arm and seed, in the order of its arms and seeds.

    Raises:
        ResultError: a file is damaged, or a run was made with another recipe than the figure now has.
    """
    runs = _found(lab, figure.name)
    asked = [(arm, seed) for arm in figure.arms for seed in figure.seeds]
    for arm, seed in (key for key in asked if key in runs):
        _require_same(lab, figure, runs[arm, seed])
    return {key: runs[key] for key in asked if key in runs}


def _require_same(lab: Path, figure: Figure, run: Result) -> None:
    if fields := changed_fields(run.recipe, recipes_of(lab, figure, run.arm, run.seed)):
        raise ResultError(
            f"{figure.name}, arm {run.arm}, seed {run.seed}: the stored run was made with another recipe, different "
            f"in {', '.join(fields[:3])}. A change of the regime reruns all arms: delete {_packed(lab, figure.name)} "
            f"and {lab / 'runs' / figure.name}"
        )


def results_of(lab: Path, figure: Figure) -> dict[str, list[Result]]:
    """The finished runs of a figure by arm, in the order of the seeds, and those of other figures that its claims name.

    Raises:
        RecipeError: a claim names a figure or an arm that does not exist.
        ResultError: a file is damaged, or a run was made with another recipe than the figure now has.
    """
    found = _by_arm(lab, figure)
    for name in {arm for claim in figure.claims for arm in claim.arms if "/" in arm}:
        other, arm = name.split("/", 1)
        elsewhere = load_figure(lab, other)
        if arm not in elsewhere.arms:
            raise RecipeError(f"{figure.name} names {name!r}; the arms of {other} are {sorted(elsewhere.arms)}")
        found[name] = _by_arm(lab, elsewhere)[arm]
    return found


def _by_arm(lab: Path, figure: Figure) -> dict[str, list[Result]]:
    runs = finished(lab, figure)
    return {name: [run for (arm, _), run in runs.items() if arm == name] for name in figure.arms}
