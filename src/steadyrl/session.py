"""From a recipe to the parts of a run, each checked against the others before anything is trained."""

import inspect
import sys
from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import date
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from steadyrl.algo import Advantage, GroupAdvantage, Objective
from steadyrl.engine.base import Engine
from steadyrl.engine.kv_cache import no_fp8_cache, resolve_kv_precision
from steadyrl.engine.local import LocalEngine
from steadyrl.model.chat import Chat
from steadyrl.model.decoding import rope_length
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
from steadyrl.model.routing import check_recording, check_replay, is_moe
from steadyrl.model.template import EndlessTemplate, Renderer, TemplateError
from steadyrl.model.text import end_tokens
from steadyrl.model.tiny import character_tokenizer, tiny_config
from steadyrl.order import seed_of
from steadyrl.prompts import Limits, Prompts, check_ends, checked_task, conversation_of, settled
from steadyrl.recipe import Optimizer, PretrainedModel, Prompt, Recipe, RecipeError, Stage, TinyModel
from steadyrl.recipe.building import arguments, build
from steadyrl.tasks.base import Split, Task
from steadyrl.tasks.build import build_task
from steadyrl.tasks.pool import RewardPool
from steadyrl.types import Sampling


@dataclass(frozen=True, kw_only=True)
class Session:
    """Everything that a run holds in memory."""

    recipe: Recipe
    """What was asked for."""
    policy: Policy
    """π: the model that is trained."""
    optimizer: torch.optim.Optimizer
    """Its AdamW."""
    engine: Engine
    """μ: what samples."""
    objective: Objective
    """What is maximised."""
    advantage: Advantage
    """How rewards become advantages."""
    task: Task
    """Problems, in this process."""
    pool: RewardPool
    """Their verifier, in worker processes."""
    sampling: Sampling
    """How rollouts are sampled."""
    prompts: Prompts
    """What the model is asked, problem by problem."""
    ends: frozenset[int]
    """Tokens that end a response."""


_PROBES = 8  # problems that a chat template is tried with


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What is known of a run before a weight is loaded."""

    recipe: Recipe
    """What was asked for, with the date that the chat template writes, if it writes one."""
    config: PreTrainedConfig
    """Of the model."""
    task: Task
    """Problems, in this process."""
    prompts: Prompts
    """What the model will be asked, looked at."""
    ends: frozenset[int]
    """Tokens that end a response."""
    warnings: tuple[str, ...]
    """What is allowed, but may not be what was meant."""


@contextmanager
def prepare(recipe: Recipe) -> Iterator[Prepared]:
    """Build the task, and render, encode and check its prompts; templates are rendered as long as the context.

    Raises:
        TaskError, ModelError: the task or the model cannot be had, or prompts cannot be used.
        TemplateError: the chat template raises, never ends, or loses the question.
        OwnCodeError: the user's own code cannot be loaded.
        RecipeError: nothing ends a response, or a class of the user's own has other options.
    """
    if recipe.runtime.threads:
        torch.set_num_threads(recipe.runtime.threads)
    check_kv_cache(recipe)
    for section in (recipe.objective, recipe.advantage, recipe.engine):
        arguments(section)  # the user's own classes are rejected before the data are read
    task = build_task(recipe.task.kind, seed=recipe.seed, parameters=task_fields(recipe))
    refuse_sizes(recipe, task)
    model, tokenizer = model_config(recipe), _tokenizer(recipe)
    with Renderer() as renderer:
        chat = _chat(tokenizer, renderer, recipe, task)
        if chat.asks_for_date and recipe.prompt.date is None:
            recipe = recipe.model_copy(update={"prompt": Prompt(date=date.today().isoformat())})
            chat = _chat(tokenizer, renderer, recipe, task)
        chat.check_header()
        text, prompts = model.get_text_config(), Prompts(chat)
        named = _generation_ends(recipe, model)
        ends = frozenset(end_tokens(tokenizer, named, recipe.rollout.stop, chat=chat))
        odd = check_ends(chat, ends, text.vocab_size)
        closed = end_tokens(tokenizer, named, (), chat=chat)
        limits = Limits(
            vocabulary=text.vocab_size,
            context=getattr(text, "max_position_embeddings", None),
            rope=rope_length(model),
            micro_tokens=recipe.update.micro_tokens,
            max_new_tokens=recipe.rollout.max_new_tokens,
            ends=frozenset(closed),
            end_texts=tuple(
                str(token) for end, token in tokenizer.added_tokens_decoder.items() if end in closed and token.special
            ),
        )
        task, said = checked_task(task, prompts, limits)
        refuse_sizes(recipe, task)  # once more: rows may have been left out
        yield Prepared(
            recipe=recipe,
            config=model,
            task=task,
            prompts=prompts,
            ends=ends,
            warnings=(*chat.warnings(), *odd, *said),
        )


def _chat(tokenizer: PreTrainedTokenizerBase, renderer: Renderer, recipe: Recipe, task: Task) -> Chat:
    """The chat, looked at with the first problem whose roles the template takes; the others are found row by row.

    Raises:
        TemplateError: it takes none of the first problems.
    """
    refused = None
    for index in range(min(_PROBES, task.size("train") or _PROBES)):
        example = conversation_of(task.example("train", index))
        try:
            return Chat(tokenizer, renderer, date=recipe.prompt.date, example=example)
        except EndlessTemplate:
            raise
        except TemplateError as error:
            refused = refused or error
    assert refused is not None
    raise refused


@contextmanager
def open_session(recipe: Recipe, prepared: Prepared | None = None) -> Iterator[Session]:
    """Build the parts; the verifier workers and the engine live as long as the context.

    Args:
        recipe: what is asked for.
        prepared: what `prepare` found out about it, where that has been done.

    Raises:
        RecipeError: parts of the recipe contradict each other.
        TaskError, ModelError: the task or the model cannot be had.
        TemplateError: the chat template cannot be used.
    """
    with ExitStack() as stack:
        ready = stack.enter_context(prepare(recipe)) if prepared is None else prepared
        yield stack.enter_context(_opened(ready))


@contextmanager
def _opened(ready: Prepared) -> Iterator[Session]:
    recipe, task = ready.recipe, ready.task
    with open_pool(recipe, task) as pool:  # a reward function is rejected before a weight is loaded
        if pool.lacking:
            print(f"steadyrl: verifier workers run without {', '.join(pool.lacking)}; see SECURITY.md", file=sys.stderr)
        policy = build_policy(recipe)
        refuse_contradictions(recipe, policy.model, task)
        if recipe.update.replay != "none":
            check_replay(policy.model)
        elif is_moe(policy.model):
            check_recording(policy.model)  # the ledger wants the routes without replay too
        with closing(build_engine(recipe, policy, ends=ready.ends)) as engine:
            yield Session(
                recipe=recipe,
                policy=policy,
                optimizer=build_optimizer(policy.model, recipe.optimizer, lr=recipe.optimizer.learning_rate),
                engine=engine,
                objective=build(recipe.objective),
                advantage=build(recipe.advantage),
                task=task,
                pool=pool,
                sampling=Sampling(temperature=recipe.rollout.temperature, max_new_tokens=recipe.rollout.max_new_tokens),
                prompts=ready.prompts,
                ends=ready.ends,
            )


def open_pool(recipe: Recipe, task: Task) -> RewardPool:
    """The verifier workers of a recipe.

    Args:
        recipe: What is asked for.
        task: The task as it is in this process; the workers see the same problems.

    Raises:
        TaskError: the workers cannot build the task, or the user's function cannot be called.
    """
    spec = task_fields(recipe) | settled(task)
    return RewardPool(spec, seed=recipe.seed, **recipe.verifier.of_workers())


def model_config(recipe: Recipe) -> PreTrainedConfig:
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


def _tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    match recipe.model:
        case TinyModel() as m:
            return character_tokenizer(m.alphabet)
        case PretrainedModel() as m:
            return load_tokenizer(m.path, revision=m.revision, trust_remote_code=m.trust_remote_code)


def _generation_ends(recipe: Recipe, model: PreTrainedConfig) -> int | list[int] | None:
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


def task_fields(recipe: Recipe) -> dict[str, Any]:
    """The task's section as plain values, with the further sets that are evaluated.

    Raises:
        OwnCodeError, RecipeError: the user's own task cannot be loaded, or takes other options.
    """
    own = {"kind": recipe.task.kind} | arguments(recipe.task)
    columns = ("question_column", "answer_column")
    sets = [
        {name: own[name] if value is None and name in columns else value for name, value in other.model_dump().items()}
        for other in recipe.evaluate.sets
    ]
    return own | {"sets": sets} if sets else own


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


def _check_alphabet(alphabet: str, task: Task) -> None:
    """Look for characters that the tokenizer of a tiny model would lose, in the first problems."""
    size = task.size("train")
    examples = [task.example("train", index) for index in range(64 if size is None else min(64, size))]
    missing = {c for e in examples for c in e.question + e.solution} - set(alphabet)
    if missing:
        raise RecipeError(
            f"model.alphabet is missing {''.join(sorted(missing))!r}, which the task uses; add these characters"
        )


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


def refuse_sizes(recipe: Recipe, task: Task) -> None:
    """Hold the sizes that a recipe asks for against its task and against each other.

    Raises:
        RecipeError: the task has too few problems, or a response does not fit into a micro-batch.
    """
    sizes: tuple[tuple[Split, str, int], ...] = (
        ("held_out", "evaluate.prompts", recipe.evaluate.prompts),
        ("train", "rollout.prompts", recipe.rollout.prompts),
        *((other.name, f"evaluate.sets, {other.name}: prompts", other.prompts or 1) for other in recipe.evaluate.sets),
    )
    for split, field, needed in sizes:
        size = task.size(split)
        if size is not None and size < needed:
            way = "; raise task.held_out" if split == "held_out" and needed < (task.size("train") or 0) else ""
            raise RecipeError(
                f"{field} = {needed}, but the task has {size} {split.replace('_', '-')} problem(s). "
                f"Use at most {size}{way}"
            )
    if recipe.update.micro_tokens <= recipe.rollout.max_new_tokens:
        raise RecipeError(
            f"update.micro_tokens = {recipe.update.micro_tokens} is too small for a prompt and a response of "
            f"rollout.max_new_tokens = {recipe.rollout.max_new_tokens}: they must fit into one forward. Raise it"
        )
