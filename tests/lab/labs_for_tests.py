"""A small lab, and results as runs would leave them."""

import json
from dataclasses import replace
from pathlib import Path

from recipes_for_tests import TINY
from steadyrl_lab.archive import store
from steadyrl_lab.figure import (
    load_figure,
    recipes_of,
)
from steadyrl_lab.result import Result

ROOT = Path(__file__).parents[2]
FALLEN = (0.9,) * 6 + (0.1,) * 6
"""Rewards of a run that collapses at its seventh step."""


def result(arm: str, seed: int, *, accuracy: float = 0.5, rewards: tuple[float, ...] = (0.5,) * 12, **fields) -> Result:
    evals = [
        {"step": step, "mode": mode, "precision": precision, "accuracy": value}
        for step, value in ((0, 0.3), (6, accuracy + 0.1), (12, accuracy))
        for mode in ("sampled", "greedy")
        for precision in ("fp8", "native")
    ]
    steps: dict[str, list[float | None]] = {
        "reward/mean": list(rewards),
        "policy/entropy": [0.4] * len(rewards),
        "mismatch/k3": [1e-3] * len(rewards),
    }
    known = {
        "figure": "f",
        "recipe": {},
        "minibatches": 8,
        "replay": "none",
        "status": "finished",
        "machine": "m",
        "seconds": 24.0,
    }
    return Result(**{**known, "arm": arm, "seed": seed, "steps": steps, "evals": evals, **fields})


def with_steps(one: Result, **steps) -> Result:
    """The same run with some of its quantities replaced; `__` is the slash of their names."""
    return replace(one, steps=one.steps | {name.replace("__", "/"): values for name, values in steps.items()})


def toml(tree: dict) -> str:
    """A recipe as TOML: JSON's values are TOML's, once each section stands under its name."""

    def inline(value) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{k} = {inline(v)}" for k, v in value.items()) + "}"
        return f"[{', '.join(map(inline, value))}]" if isinstance(value, list) else json.dumps(value)

    return "\n".join(f"{name} = {inline(value)}" for name, value in tree.items())


def stored_pair(lab: Path, arm: str = "with", name: str = "pair", **fields) -> Result:
    recipe = recipes_of(lab, load_figure(lab, name), arm, 3).dump()
    store(lab, one := result(arm, 3, figure=name, recipe=recipe, minibatches=2, **fields))
    return one


def small_lab(folder: Path) -> Path:
    """Write a lab of one figure whose runs take a second."""
    (folder / "regimes").mkdir()
    (folder / "figures").mkdir()
    cold = {"stages": [{"steps": 2}], "batch": 8, "check_every": 2}
    regime = TINY | {"cold_start": cold, "objective": {"name": "minirl"}}
    regime = {name: value for name, value in regime.items() if name not in ("steps", "update")}
    (folder / "regimes" / "quick.toml").write_text(toml(regime))
    (folder / "figures" / "pair.toml").write_text(
        'title = "A pair"\nregime = "quick"\nseeds = [3]\nupdates = 4\nminibatches = 2\nevaluate_every = 2\n'
        '[arms.with]\nlabel = "clip"\nchange = { update.replay = "R3" }\n'
        '[arms.without]\nlabel = "no clip"\nchange = { objective.clip = false }\n'
        '[[claims]]\nid = "C7"\ntext = "clipping saves"\nrules = [{ kind = "stable", arm = "with" }]\n'
    )
    return folder
