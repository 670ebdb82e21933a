"""What the ledger and the gap of the values cost in a step of the demo: computing them, and writing them down."""

import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from _measure import seconds, show, sized
from steadyrl import loop
from steadyrl.measure import step
from steadyrl.parts import prepared_parts
from steadyrl.recipe import ColdStart, Evaluate, Recipe, shipped
from steadyrl.run.directory import Run
from steadyrl.run.logs import MetricsLog, read_jsonl

STEPS, WARM_UP, IMITATED = sized(20, 2), 3, sized(40, 2)
PARTS = {"ledger": (step, "step_ledger"), "gap": (step, "value_gap"), "Δ": (step, "surrogate_error")}
PARTS["writing"] = (MetricsLog, "log")


def demo(minibatches: int) -> Recipe:
    """The demo after a short cold start, which is enough for responses of the usual length."""
    recipe = shipped.read("demo")
    assert recipe.cold_start is not None
    first, second = recipe.cold_start.stages
    brief = [one.model_copy(update={"steps": min(one.steps, 2 * IMITATED)}) for one in (first, second)]
    brief[1] = brief[1].model_copy(update={"steps": IMITATED})
    changes = {
        "steps": STEPS + WARM_UP,
        "evaluate": Evaluate(every=0, prompts=1),
        "cold_start": ColdStart(stages=tuple(brief)),
        "update": recipe.update.model_copy(update={"minibatches": minibatches}),
    }
    return recipe.model_copy(update=changes)


@contextmanager
def clocked() -> Iterator[dict[str, list[float]]]:
    """Time every call of `PARTS`; of the logs, that of the ledger only."""
    spent: dict[str, list[float]] = defaultdict(list)

    def timed(name: str, work: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            found: list[Any] = []
            took = seconds(lambda: found.append(work(*args, **options)))
            if name != "writing" or args[0]._path.name == "ledger.jsonl":
                spent[name].append(took)
            return found[0]

        return call

    with ExitStack() as stack:
        for name, (owner, attribute) in PARTS.items():
            stack.enter_context(patch.object(owner, attribute, timed(name, getattr(owner, attribute))))
        stack.enter_context(patch("steadyrl.guard.redraw"))
        yield spent


def row(minibatches: int) -> dict[str, Any]:
    """Medians over the steps of one run."""
    recipe = demo(minibatches)
    with tempfile.TemporaryDirectory() as folder, clocked() as spent, prepared_parts(recipe) as parts:
        run = Run.create(Path(folder) / "run", recipe, inputs={})
        loop.train(recipe, parts.rollouter, parts.trainer, parts.evaluator, run, stop_asked=lambda: False)
        steps = [line["seconds/step"] for line in read_jsonl(run.path / "metrics.jsonl")][WARM_UP:]
    late = {name: times[WARM_UP:] for name, times in spent.items()}
    # a step whose groups are all uniform updates nothing, and has no gap
    parts = {name: statistics.median(times) if times else 0.0 for name, times in late.items()}
    cost, step = sum(parts.values()), statistics.median(steps)
    shown = {f"{name} ms": 1e3 * value for name, value in parts.items()}
    whole = {"all ms": 1e3 * cost, "step ms": 1e3 * step, "share %": 100 * cost / (cost + step)}
    return {"mini-batches": minibatches, **shown, **whole}


def main() -> None:
    rows = [row(minibatches) for minibatches in (1, 4)]
    show("The recipe demo: what the ledger takes of a step", rows, {"share": [r["share %"] / 100 for r in rows]})


if __name__ == "__main__":
    main()
