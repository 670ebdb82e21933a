"""Do the parts of a recipe fit together? Asked before anything is trained."""

import inspect

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from steadyrl.algo import GroupAdvantage
from steadyrl.build import stage_task
from steadyrl.engine.kv_cache import no_fp8_cache, resolve_kv_precision
from steadyrl.model.decoding import rope_length
from steadyrl.recipe import Recipe, RecipeError, TinyModel
from steadyrl.recipe.building import build
from steadyrl.routing import is_moe
from steadyrl.tasks.base import Task


def recipe_warnings(recipe: Recipe) -> list[str]:
    """What in a recipe is allowed, but will not do what it seems to."""
    if recipe.update.replay == "R2" and recipe.update.minibatches == 1:
        return [
            'update.replay = "R2" with update.minibatches = 1 does nothing: the one update is made at θ_old, where the '
            "trainer's experts are those that R2 would replay"
        ]
    return []


def check_kv_cache(recipe: Recipe, model: PreTrainedConfig | None = None) -> tuple[str, str | None]:
    """Return the precision of the engine's cache, and why `auto` did not take FP8, where it did not.

    Raises:
        EngineError: this machine, or the model if it is given, cannot have the cache that was asked for.
    """
    asked = recipe.engine.kv_precision
    if recipe.engine.kind != "vllm":
        return asked, None
    on_cpu = not torch.cuda.is_available()
    taken = resolve_kv_precision(asked, model, on_cpu=on_cpu)
    return taken, no_fp8_cache(model, on_cpu=on_cpu) if asked == "auto" else None


def refuse_contradictions(recipe: Recipe, model: PreTrainedModel, task: Task) -> None:
    """Hold the parts of a recipe against each other; the model may be one without weights.

    Raises:
        RecipeError: they cannot work together.
        EngineError: this machine or the model cannot have the cache that was asked for.
    """
    check_kv_cache(recipe, model.config)
    if (rope := rope_length(model.config)) is not None and recipe.rollout.max_new_tokens >= rope:
        raise RecipeError(
            f"rollout.max_new_tokens = {recipe.rollout.max_new_tokens}, but the rope of {type(model).__name__} changes "
            f"its factors beyond {rope} tokens of prompt and response, and a cache keeps the old ones. Lower it"
        )
    if recipe.update.replay != "none" and not is_moe(model):
        raise RecipeError(
            f'update.replay = "{recipe.update.replay}", but {type(model).__name__} is dense: it has no experts '
            'to replay. Use "none"'
        )
    balanced = recipe.cold_start is not None and recipe.cold_start.aux_loss > 0.0
    if balanced and "output_router_logits" not in inspect.signature(model.forward).parameters:
        raise RecipeError(f"cold_start.aux_loss balances experts, and {type(model).__name__} has no such loss. Use 0")
    objective, advantage = build(recipe.objective), build(recipe.advantage)
    if isinstance(advantage, GroupAdvantage) and advantage.leave_one_out and objective.normalised:
        raise RecipeError(
            f'advantage.leave_one_out = true, but the objective "{recipe.objective.name}" divides by the standard '
            "deviation of the whole group, the response itself included. Use false, or another objective"
        )
    if isinstance(recipe.model, TinyModel):
        _check_alphabet(recipe.model.alphabet, task)
        for stage in recipe.cold_start.stages if recipe.cold_start else ():
            _check_alphabet(recipe.model.alphabet, stage_task(recipe, stage, task))


def _check_alphabet(alphabet: str, task: Task) -> None:
    """Look for characters that the tokenizer of a tiny model would lose, in the first problems."""
    size = task.size("train")
    examples = [task.example("train", index) for index in range(64 if size is None else min(64, size))]
    missing = {c for e in examples for c in e.question + e.solution} - set(alphabet)
    if missing:
        raise RecipeError(
            f"model.alphabet is missing {''.join(sorted(missing))!r}, which the task uses; add these characters"
        )
