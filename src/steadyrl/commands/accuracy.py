"""Accuracy in the terminal: of one evaluation, and before and after a training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steadyrl.run.logs import read_jsonl


def print_evaluation(rows: Sequence[dict[str, Any]]) -> None:
    """A line for each set, mode and precision."""
    for row in rows:
        several = [f"  {name} {row[name]:.3f}" for name in row if "@" in name]
        size = f"{row['prompts']} prompts × {row['samples']}"
        print(f"{_where(row)} accuracy {_with_interval(row)}  {_reward(row)}{''.join(several)}  {size}")


def print_accuracy(path: Path) -> None:
    """Accuracy and mean reward before and now, of every set, mode and precision that both evaluations have."""
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
            if _partial(before) or _partial(after):
                print(f"  {'':17} {_reward(before)} → {_reward(after)}")


def _where(row: Mapping[str, Any]) -> str:
    """Mode and precision, and the set where it is not the held-out one."""
    name = row.get("set", "held_out")
    return f"{row['mode']:8} {row['precision']:8}" + (f" {name}" if name != "held_out" else "")


def _partial(row: Mapping[str, Any]) -> bool:
    """Whether the mean reward says something that the accuracy does not."""
    return row.get("reward") is not None and row["reward"] != row["accuracy"]


def _reward(row: Mapping[str, Any]) -> str:
    return f"reward {_with_interval(row, 'reward', 'reward_low', 'reward_high')}"


def _with_interval(row: Mapping[str, Any], *names: str) -> str:
    """A mean and its interval; a dash for what is not defined."""
    value, low, high = (row.get(name) for name in names or ("accuracy", "low", "high"))
    return f"{_number(value)} [{_number(low)}, {_number(high)}]"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
