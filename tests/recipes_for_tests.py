"""A recipe that trains in about a second, and how to run it: the tests of the loop and of the command line share it."""

import copy
import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

from steadyrl.cli import main
from steadyrl.run.logs import Row, read_jsonl

TINY: dict[str, Any] = {
    "steps": 4,
    "model": {
        "kind": "tiny",
        "family": "qwen3_moe",
        "config": {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "intermediate_size": 32,
            "norm_topk_prob": True,
            "initializer_range": 0.1,
            "max_position_embeddings": 64,
        },
    },
    "runtime": {"threads": 1},
    "task": {"kind": "chains", "min_terms": 2, "max_terms": 2},
    "engine": {"kind": "local", "precision": "fp8"},
    "rollout": {"prompts": 8, "responses": 4, "max_new_tokens": 10},
    "update": {"replay": "R3"},
    "optimizer": {"learning_rate": 1e-3},
    "evaluate": {"every": 2, "prompts": 16},
    "checkpoints": {"every": 2},
}

DENSE: dict[str, Any] = {
    "model": {
        "family": "qwen3",
        "config": {
            name: TINY["model"]["config"][name]
            for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        }
        | {"head_dim": 16, "intermediate_size": 32, "max_position_embeddings": 64},
    }
}

# rewards that differ within a group even for a model that knows nothing
COIN = "def reward(prompt, completion):\n    return float(sum(map(ord, completion)) % 2)\n"

MACHINE = ("seconds/", "throughput/", "memory/")
"""Metrics that depend on the machine and its load."""


def tree(**changes: Any) -> dict[str, Any]:
    """The tiny recipe as plain values, changed at the fields given; a section is merged, `replaced` ones are not."""
    return merged(TINY, changes)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, section by section; a model's config, and a task of another kind, are whole."""
    out = copy.deepcopy(dict(base))
    for name, value in changes.items():
        whole = not isinstance(value, Mapping) or name == "config" or not isinstance(out.get(name), Mapping)
        other = isinstance(value, Mapping) and value.get("kind", "") != out.get(name, {}).get("kind", "")
        out[name] = value if whole or ("kind" in value and other) else merged(out[name], value)
    return out


def write_recipe(folder: Path, **changes: Any) -> Path:
    """A recipe file: JSON, which `load` reads as well as TOML."""
    path = folder / "recipe-under-test.json"
    path.write_text(json.dumps(tree(**changes)))
    return path


def coin_questions(folder: Path, *, count: int = 64, reward: str = COIN, name: str = "reward", **more: Any) -> dict:
    """A task of short questions whose reward is the user's own function."""
    data, code = folder / "questions.jsonl", folder / "own.py"
    data.write_text("".join(json.dumps({"question": f"{i}+0=", "answer": str(i)}) + "\n" for i in range(count)))
    code.write_text(reward)
    return {"kind": "questions", "path": str(data), "reward": f"{code}:{name}", "held_out": 16} | more


def train(folder: Path, run: str = "run", *, report: bool = False, **changes: Any) -> Path:
    """Train the tiny recipe in this process by the command line; the run directory."""
    target = folder / run
    assert command("train", write_recipe(folder, **changes), "--run", target, report=report) == 0
    return target


def command(*arguments: str | Path, report: bool = False) -> int:
    """A command in this process; without the report, which would take longer to draw than the steps it shows."""
    with nullcontext() if report else patch("steadyrl.guard.redraw"):
        return main([str(argument) for argument in arguments])


def comparable(run: Path) -> dict[str, list[Row]]:
    """What two runs of the same recipe must agree on, exactly."""
    metrics = [
        {name: value for name, value in row.items() if not name.startswith(MACHINE)}
        for row in read_jsonl(run / "metrics.jsonl")
    ]
    names = ("ledger", "eval", "samples", "rollouts", "cold_start", "failures")
    files = {name: read_jsonl(run / f"{name}.jsonl") for name in names}
    return {"metrics": metrics, **files}
