"""From a recipe to the parts of a run."""

from collections.abc import Collection

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from steadyrl.engine.base import Engine
from steadyrl.engine.local import LocalEngine
from steadyrl.model.loading import (
    ModelError,
    Policy,
    build_tiny,
    config_of,
    generation_ends,
    load_pretrained,
    load_tokenizer,
    recompute_activations,
)
from steadyrl.model.tiny import character_tokenizer, tiny_config
from steadyrl.order import seed_of
from steadyrl.preflight import task_fields
from steadyrl.prompts import settled
from steadyrl.recipe import Optimizer, PretrainedModel, Recipe, RecipeError, Stage, TinyModel
from steadyrl.recipe.building import build
from steadyrl.tasks.base import Task
from steadyrl.tasks.build import build_task
from steadyrl.tasks.pool import RewardPool
from steadyrl.train.schedule import Schedule
from steadyrl.train.trainer import LocalTrainer


def open_pool(recipe: Recipe, task: Task) -> RewardPool:
    """The verifier workers of a recipe.

    Args:
        recipe: The recipe of the run.
        task: The task as it is in this process; the workers see the same problems.

    Raises:
        TaskError: the workers cannot build the task, or the user's function cannot be called.
    """
    spec = task_fields(recipe) | settled(task)
    return RewardPool(spec, seed=recipe.seed, **recipe.verifier.of_workers())


def load_config(recipe: Recipe) -> PreTrainedConfig:
    """The config of the model.

    Raises:
        ModelError: there is none, or a field of it is wrong.
    """
    match recipe.model:
        case TinyModel() as m:
            try:
                return tiny_config(m.family, m.config, len(character_tokenizer(m.alphabet)))
            except ValueError as error:
                raise ModelError(str(error)) from error
        case PretrainedModel() as m:
            return config_of(m.path, revision=m.revision, trust_remote_code=m.trust_remote_code)


def tokenizer_of(recipe: Recipe) -> PreTrainedTokenizerBase:
    """The tokenizer of the model."""
    match recipe.model:
        case TinyModel() as m:
            return character_tokenizer(m.alphabet)
        case PretrainedModel() as m:
            return load_tokenizer(m.path, revision=m.revision, trust_remote_code=m.trust_remote_code)


def named_ends(recipe: Recipe, model: PreTrainedConfig) -> int | list[int] | None:
    """The tokens that the model itself says end a response."""
    match recipe.model:
        case TinyModel():
            return generation_ends(model, None, revision=None)
        case PretrainedModel() as m:
            return generation_ends(model, m.path, revision=m.revision)


def build_policy(recipe: Recipe) -> Policy:
    """Load or build the model, without dropout: on the same weights, π must be π."""
    dtype = getattr(torch, recipe.runtime.dtype)
    _check_device(recipe.runtime.device)
    match recipe.model:
        case TinyModel() as m:
            policy = build_tiny(family=m.family, alphabet=m.alphabet, config=m.config, seed=recipe.seed, dtype=dtype)
        case PretrainedModel() as m:
            policy = load_pretrained(m.path, revision=m.revision, trust_remote_code=m.trust_remote_code, dtype=dtype)
    model = policy.model.to(recipe.runtime.device)  # pyright: ignore[reportArgumentType]
    model.eval()
    if recipe.runtime.activation_checkpointing:
        recompute_activations(model)
    return policy


def stage_task(recipe: Recipe, stage: Stage, task: Task) -> Task:
    """The task of one stage of the cold start, whose problems are not those of the training.

    Args:
        recipe: of the run.
        stage: of its cold start.
        task: of the run; the same rows of its data are left out.

    Raises:
        TaskError: it has no such parameters.
    """
    parameters = task_fields(recipe) | stage.task | settled(task)
    return build_task(recipe.task.kind, seed=seed_of(recipe.seed, "cold start"), parameters=parameters)


def _check_device(name: str) -> None:
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        seen = torch.cuda.device_count() or "no"
        raise RecipeError(f'runtime.device = {name!r}, but {seen} CUDA device is visible; use "cpu"')


def build_optimizer(model: nn.Module, options: Optimizer, *, lr: float) -> torch.optim.Optimizer:
    """AdamW over all parameters."""
    return torch.optim.AdamW(
        model.parameters(), lr=lr, betas=options.betas, weight_decay=options.weight_decay, fused=True
    )


def build_engine(recipe: Recipe, policy: Policy, *, ends: Collection[int]) -> Engine:
    """The engine of the recipe; `ends` are the tokens that end a response.

    Raises:
        EngineError: it is not installed, or refuses the model or the options.
    """
    return build(recipe.engine, policy.model, end_tokens=set(ends))


def unquantised_engine(recipe: Recipe, policy: Policy, *, ends: Collection[int]) -> Engine:
    """What the trained weights say where nothing is rounded: the embedded engine, whatever samples the rollouts."""
    return LocalEngine(policy.model, end_tokens=set(ends), max_sequences=recipe.engine.max_sequences)


def build_trainer(recipe: Recipe, policy: Policy) -> LocalTrainer:
    """The trainer of the recipe, around a model."""
    options, update = recipe.optimizer, recipe.update
    return LocalTrainer(
        policy=policy,
        optimizer=build_optimizer(policy.model, options, lr=options.learning_rate),
        objective=build(recipe.objective),
        schedule=Schedule(
            peak=options.learning_rate,
            total=recipe.steps * update.minibatches,
            warmup=options.warmup_steps,
            shape=options.schedule,
        ),
        replay=update.replay,
        minibatches=update.minibatches,
        micro_tokens=update.micro_tokens,
        temperature=recipe.rollout.temperature,
        max_grad_norm=options.max_grad_norm,
    )
