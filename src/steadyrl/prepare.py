"""What is known of a run before a weight is loaded: its task, and its prompts as the model will read them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from steadyrl.build import load_config, named_ends, tokenizer_of
from steadyrl.consistency import check_kv_cache
from steadyrl.model.chat import Chat
from steadyrl.model.decoding import rope_length
from steadyrl.model.template import EndlessTemplate, Renderer, TemplateError
from steadyrl.model.text import end_tokens
from steadyrl.preflight import open_task, refuse_sizes
from steadyrl.prompts import Limits, Prompts, check_ends, checked_task, conversation_of
from steadyrl.recipe import Prompt, Recipe
from steadyrl.tasks.base import Task

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
    """The prompts, checked."""
    ends: frozenset[int]
    """Tokens that end a response."""
    warnings: tuple[str, ...]
    """What is allowed, but may not be what was meant."""


@contextmanager
def prepare(recipe: Recipe, task: Task | None = None) -> Iterator[Prepared]:
    """Build the task, and render, encode and check its prompts; templates are rendered as long as the context.

    Args:
        recipe: the recipe of the run.
        task: its task, where it has been built.

    Raises:
        TaskError, ModelError: the task or the model cannot be had, or prompts cannot be used.
        TemplateError: the chat template raises, never ends, or loses the question.
        RecipeError: nothing ends a response.
    """
    if recipe.runtime.threads:
        torch.set_num_threads(recipe.runtime.threads)
    check_kv_cache(recipe)
    task = open_task(recipe) if task is None else task
    model, tokenizer = load_config(recipe), tokenizer_of(recipe)
    with Renderer() as renderer:
        chat = _chat(tokenizer, renderer, recipe, task)
        if chat.asks_for_date and recipe.prompt.date is None:
            recipe = recipe.model_copy(update={"prompt": Prompt(date=date.today().isoformat())})
            chat = _chat(tokenizer, renderer, recipe, task)
        chat.check_header()
        text, prompts = model.get_text_config(), Prompts(chat)
        named = named_ends(recipe, model)
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
    """The chat, tried with the first problem whose roles the template takes; the others are found row by row.

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
