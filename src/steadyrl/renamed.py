"""Names of earlier versions. A recipe or a flag that has one is rejected; what an earlier run wrote is translated."""

from collections.abc import Mapping
from typing import Any

FIELDS = {
    "hold": "runtime",
    "scoring": "verifier",
    "sinks": "trackers",
    "task.score": "task.reward",
    "task.min_score": "task.min_reward",
}
"""Sections and fields of a recipe: the name before, and the name now."""
METRICS = {"seconds/scoring": "seconds/logprobs"}
"""Columns of `metrics.jsonl`."""
FACTORS = {"discrepancy": "mismatch"}
"""Values of `factor` in `ledger.jsonl`, and of `objective.ratio`."""


def new_field(path: str) -> str | None:
    """Today's name of a renamed field, or of a field in a renamed section; None: `path` is no name of before."""
    for old, new in FIELDS.items():
        if path == old or path.startswith(f"{old}."):
            return new + path.removeprefix(old)
    return None


def translate_recipe(tree: dict[str, Any]) -> None:
    """Give the sections and fields in the recipe.json of an earlier run their names of today."""
    for old, new in FIELDS.items():
        *above, name = old.split(".")
        section = tree.get(above[0]) if above else tree
        if isinstance(section, dict) and name in section:
            section[new.rpartition(".")[2]] = section.pop(name)
    objective, task = tree.get("objective"), tree.get("task")
    if isinstance(objective, dict) and objective.get("ratio") in FACTORS:
        objective["ratio"] = FACTORS[objective["ratio"]]
    if isinstance(task, dict) and task.get("kind") == "questions" and "question" in task:
        for name in task.keys() & {"question", "answer", "solution"}:  # columns, in the first preview
            task[f"{name}_column"] = task.pop(name)


def translate_inputs(inputs: Mapping[str, str]) -> dict[str, str]:
    """Digests of what a run reads, by the names of today."""
    return {_new_input(name): digest for name, digest in inputs.items()}


def _new_input(name: str) -> str:
    field, colon, file = name.partition(": ")
    return f"{new_field(field) or field}{colon}{file}"


def translate_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of `metrics.jsonl` or `ledger.jsonl` by the names of today."""
    found = {METRICS.get(name, name): value for name, value in row.items()}
    return found | {"factor": FACTORS.get(row["factor"], row["factor"])} if "factor" in row else found
