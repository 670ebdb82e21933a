"""The parts of a run, open: what samples, what trains and what evaluates."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial

from steadyrl.build import build_engine, build_policy, build_trainer, open_pool, unquantised_engine
from steadyrl.consistency import refuse_contradictions
from steadyrl.evaluation import Evaluator
from steadyrl.prepare import Prepared, prepare
from steadyrl.recipe import Recipe
from steadyrl.recipe.building import build
from steadyrl.rollout.rollouter import Rollouter
from steadyrl.routing import check_recording, check_replay, is_moe
from steadyrl.terminal import tell
from steadyrl.training.trainer import LocalTrainer
from steadyrl.types import Sampling


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What the commands take apart and hand to the loop; nothing below them takes it whole."""

    rollouter: Rollouter
    """Samples with the engine, and asks the verifier."""
    trainer: LocalTrainer
    """Trains the policy."""
    evaluator: Evaluator
    """Measures what the policy earns."""


@contextmanager
def prepared_parts(recipe: Recipe) -> Iterator[Parts]:
    """Prepare a recipe and open its parts; errors are those of `prepare` and `open_parts`."""
    with prepare(recipe) as ready, open_parts(ready) as parts:
        yield parts


@contextmanager
def open_parts(ready: Prepared) -> Iterator[Parts]:
    """Open the parts of a run; the verifier's workers and the engine live as long as the context.

    Raises:
        RecipeError: parts of the recipe contradict each other.
        TaskError, ModelError, EngineError: the verifier, the model or the engine cannot be had.
        RoutingError: the routes of the model cannot be recorded, or replayed where that is asked for.
    """
    recipe, task = ready.recipe, ready.task
    with open_pool(recipe, task) as pool:  # a reward function is rejected before a weight is loaded
        if pool.lacking:
            tell(f"the verifier's workers run without {', '.join(pool.lacking)}; see SECURITY.md")
        policy = build_policy(recipe)
        refuse_contradictions(recipe, policy.model, task)
        if recipe.update.replay != "none":
            check_replay(policy.model)
        elif is_moe(policy.model):
            check_recording(policy.model)  # the ledger wants the routes without replay too
        with closing(build_engine(recipe, policy, ends=ready.ends)) as engine:
            rollouter = Rollouter(
                task=task,
                prompts=ready.prompts,
                engine=engine,
                pool=pool,
                advantage=build(recipe.advantage),
                model=policy.model,
                tokenizer=policy.tokenizer,
                ends=ready.ends,
                sampling=Sampling(temperature=recipe.rollout.temperature, max_new_tokens=recipe.rollout.max_new_tokens),
                seed=recipe.seed,
                strip_special=recipe.rollout.strip_special,
            )
            unquantised = partial(unquantised_engine, recipe, policy, ends=ready.ends)
            yield Parts(
                rollouter=rollouter,
                trainer=build_trainer(recipe, policy),
                evaluator=Evaluator(recipe=recipe, rollouter=rollouter, unquantised=unquantised),
            )
