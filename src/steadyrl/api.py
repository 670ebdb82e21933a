"""Trains, resumes, evaluates and loads from Python. The commands call the same functions."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steadyrl.errors import UserError
from steadyrl.preflight import open_task, refuse_existing_run, require_run
from steadyrl.recipe import Recipe
from steadyrl.run.progress import Display
from steadyrl.run.record import Record, Step
from steadyrl.run.trackers import require_installed
from steadyrl.saved import recipe_of
from steadyrl.start import import_torch, loaded
from steadyrl.terminal import tell

if TYPE_CHECKING:
    from steadyrl.model.loading import Policy
    from steadyrl.parts import Parts
    from steadyrl.prepare import Prepared
    from steadyrl.run.directory import Run
    from steadyrl.run.logs import Row

OnStep = Callable[[Step], None]
"""Called after each global step, when its metrics are logged."""
OnEvaluation = Callable[[list["Row"]], None]
"""Called after each evaluation with its rows, one for each set, mode and precision."""


def train(
    recipe: str | Path | Recipe,
    *,
    run: str | Path | None = None,
    on_step: OnStep | None = None,
    on_evaluation: OnEvaluation | None = None,
    on_start: "Callable[[Prepared], None] | None" = None,
    stop_asked: Callable[[], bool] = lambda: False,
    **sections: Any,
) -> Record:
    """Train by a recipe, from its first step to its last.

        run = train("demo", steps=20, optimizer={"learning_rate": 2e-4})

    Args:
        recipe: the name of a recipe that comes with SteadyRL, the path of a TOML file, or a `Recipe`.
        run: the run directory, which must not exist; by default `runs/<name of the recipe>`.
        on_step: called after each global step.
        on_evaluation: called after each evaluation.
        on_start: called before a weight is loaded, with the task and the prompts.
        stop_asked: asked after each step; True stops the run with a checkpoint, and `resume` continues it.
        sections: sections and fields of the recipe that are changed, as `Recipe.replace` takes them.

    Raises:
        UserError: the recipe, the model or the data cannot be used. The message names the field and the fix.
        RunStopped: the run had to stop. Its directory has what is needed to find out why.
    """
    name = "run" if isinstance(recipe, Recipe) else Path(recipe).stem
    asked = (recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)).replace(**sections)
    path = Path(run) if run is not None else Path("runs") / name
    refuse_existing_run(path)
    require_installed(asked.trackers)
    task = open_task(asked)
    import_torch()
    from steadyrl.prepare import prepare
    from steadyrl.run.directory import Run
    from steadyrl.run.inputs import inputs_of

    def create(ready: "Prepared") -> "Run":
        return Run.create(path, ready.recipe, inputs=inputs_of(ready.recipe, ready.task))

    with prepare(asked, task) as ready:
        if on_start is not None:
            on_start(ready)
        return _carry_out(ready, create, on_step, on_evaluation, stop_asked)


def resume(
    run: str | Path,
    *,
    checkpoint: str | None = None,
    accept_changes: bool = False,
    on_step: OnStep | None = None,
    on_evaluation: OnEvaluation | None = None,
    on_start: "Callable[[Prepared], None] | None" = None,
    stop_asked: Callable[[], bool] = lambda: False,
) -> Record:
    """Continue a run, to the same numbers as if it had not been interrupted.

    Args:
        run: its directory.
        checkpoint: start from this one instead of the newest, such as `step-000020`.
        accept_changes: continue although data, reward function or model have changed; the changes are noted.
        on_step, on_evaluation, on_start, stop_asked: as for `train`.

    Raises:
        UserError, RunStopped: as for `train`.
    """
    require_run(Path(run))
    import_torch()
    from steadyrl.prepare import prepare
    from steadyrl.run.directory import Run
    from steadyrl.run.inputs import inputs_of

    opened = Run.reopen(Path(run), start_from=checkpoint)
    with ExitStack() as stack:
        stack.callback(opened.close)
        ready = stack.enter_context(prepare(opened.recipe))
        now = inputs_of(ready.recipe, ready.task)
        if warning := opened.compare_inputs(ready.recipe, now, accept=accept_changes):
            tell(warning, lines=True)
        if on_start is not None:
            on_start(ready)
        return _carry_out(ready, lambda _: opened, on_step, on_evaluation, stop_asked)


def evaluate(checkpoint: str | Path, *, trust_remote_code: bool = False, **sections: Any) -> "list[Row]":
    """Evaluate a saved model: sampled and greedy, in the sampling engine's precision and unquantised.

    Args:
        checkpoint: a run directory, whose newest checkpoint is taken, or one of its checkpoints.
        trust_remote_code: run the model's own Python code, where the run's recipe asks for it.
        sections: changes to the run's recipe, such as `evaluate={"prompts": 1000}`.

    Returns:
        A row for each set, mode and precision, as `eval.jsonl` has them.

    Raises:
        UserError: there is no such checkpoint, or the verifier fails too often.
    """
    recipe = recipe_of(Path(checkpoint), trust_remote_code=trust_remote_code)
    return evaluate_recipe(recipe.replace(**sections))


def evaluate_recipe(recipe: Recipe) -> "list[Row]":
    """Evaluate the model of a recipe as it is; see `evaluate`."""
    import_torch()
    from steadyrl.prepare import prepare

    with prepare(recipe) as ready, loaded(ready) as parts:
        found = parts.evaluator.evaluate(every_mode=True, bar=Display().bar)
    parts.evaluator.require(found)
    return found.rows


def load(path: str | Path, *, dtype: str = "float32", device: str = "cpu", trust_remote_code: bool = False) -> "Policy":
    """Load a model and its tokenizer, to build a trainer from the pieces (`examples/minimal.py`).

    Args:
        path: a folder, or a name on the hub.
        dtype: of the weights, such as `float32` or `bfloat16`.
        device: where the weights go.
        trust_remote_code: run the model's own Python code.

    Raises:
        ModelError: it cannot be loaded, or cannot be trained in full.
    """
    import_torch()
    import torch

    from steadyrl.model.loading import load_pretrained

    policy = load_pretrained(str(path), revision=None, trust_remote_code=trust_remote_code, dtype=getattr(torch, dtype))
    policy.model.to(torch.device(device)).eval()  # pyright: ignore[reportArgumentType]
    return policy


def _carry_out(
    ready: "Prepared",
    open_run: "Callable[[Prepared], Run]",
    on_step: OnStep | None,
    on_evaluation: OnEvaluation | None,
    stop_asked: Callable[[], bool],
) -> Record:
    """Load the model, audit the verifier, open the run directory, and train."""
    from steadyrl.consistency import recipe_warnings
    from steadyrl.guard import TrainingStopped
    from steadyrl.loop import train as train_loop

    for warning in (*recipe_warnings(ready.recipe), *ready.warnings):
        tell(warning)
    with loaded(ready) as parts:
        _audit(ready, parts)
        run = open_run(ready)
        run.on_step, run.on_evaluation = on_step, on_evaluation
        way_on = f"To change a setting, edit {run.path / 'recipe.json'}, then run `steadyrl resume {run.path}`"
        try:
            taken = train_loop(
                ready.recipe, parts.rollouter, parts.trainer, parts.evaluator, run, stop_asked=stop_asked
            )
        except TrainingStopped as error:
            raise TrainingStopped(f"{error}. {way_on}") from error
        except UserError as error:
            raise UserError(f"{error}. {way_on}") from error
        finally:
            run.close()
        return Record(run.path, taken)


def _audit(ready: "Prepared", parts: "Parts") -> None:
    """Say what is odd about the model and the verifier."""
    from steadyrl.audit import at_start

    rollouter = parts.rollouter
    with Display().bar("auditing the verifier"):
        found = at_start(ready.recipe, rollouter.task, rollouter.pool, rollouter.tokenizer)
    for warning in (*parts.trainer.policy.warnings, *found):
        tell(warning)
