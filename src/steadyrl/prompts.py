"""What a run asks its model: every prompt is rendered, encoded and checked before a weight is loaded."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from steadyrl.model.chat import Chat, EncodedPrompt, asked, contents
from steadyrl.model.template import Conversation, EndlessTemplate, TemplateError
from steadyrl.recipe import RecipeError
from steadyrl.tasks.base import Example, Task, TaskError
from steadyrl.tasks.patience import watched
from steadyrl.tasks.questions import Questions

CHECKED = 64
"""Problems of an endless task that are checked."""
AT_ONCE = 1024
"""Prompts that are encoded together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a prompt must fit into."""

    vocabulary: int
    """Tokens that the model knows."""
    context: int | None
    """Most tokens of prompt and response together; None: any number."""
    rope: int | None
    """Most of them that the model's rope treats alike (`decoding.rope_length`); None: any number."""
    micro_tokens: int
    """`update.micro_tokens`."""
    max_new_tokens: int
    """`rollout.max_new_tokens`."""
    ends: frozenset[int]
    """Tokens that always end a response, without those of `rollout.stop`."""
    end_texts: tuple[str, ...]
    """How those of them are written that are special: white space behind one changes nothing."""

    def fault(self, prompt: EncodedPrompt, said: Sequence[str]) -> str | None:
        """Why a prompt cannot be used, or None.

        Args:
            prompt: as the model would see it.
            said: texts that it must contain.
        """
        length, response = len(prompt.packed), self.max_new_tokens
        if any(text.strip() not in prompt.text for text in said):
            return "loses or changes its question in the chat template"
        if not length:
            return "has an empty prompt"
        if max(prompt.packed) >= self.vocabulary:
            return f"has a prompt with token {max(prompt.packed)}, outside the model's vocabulary of {self.vocabulary}"
        if prompt.packed[-1] in self.ends or prompt.text.rstrip().endswith(self.end_texts):
            return "has a prompt that ends with a token that ends a response"
        if self.context is not None and length + response > self.context:
            return (
                f"has a prompt of {length:,} tokens; with rollout.max_new_tokens = {response} it exceeds the model's "
                f"context of {self.context}"
            )
        if self.rope is not None and length + response > self.rope:
            return (
                f"has a prompt of {length:,} tokens; with rollout.max_new_tokens = {response} it crosses {self.rope} "
                "tokens, beyond which the model's rope changes its factors and a cache keeps the old ones"
            )
        if length + response - 1 > self.micro_tokens:
            return (
                f"has a prompt of {length:,} tokens; with rollout.max_new_tokens = {response} it exceeds "
                f"update.micro_tokens = {self.micro_tokens}"
            )
        return None


class Prompts:
    """The prompts of a task. Those of data are kept; endless ones are encoded when they are drawn."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self._kept: dict[str, EncodedPrompt] = {}

    def __call__(self, examples: Sequence[Example]) -> list[EncodedPrompt]:
        """The prompts of problems."""
        new = [example for example in examples if example.place not in self._kept]
        encoded = iter(self.chat.encode([conversation_of(example) for example in new]) if new else ())
        return [self._kept[e.place] if e.place in self._kept else next(encoded) for e in examples]

    def encoded(self, examples: Sequence[Example]) -> list[EncodedPrompt]:
        """The prompts of problems; those of data are remembered."""
        found = self(examples)
        self._kept |= {example.place: prompt for example, prompt in zip(examples, found, strict=True) if example.place}
        return found


def conversation_of(example: Example) -> Conversation:
    """The turns that the chat template gets."""
    return example.messages or asked(example.question)


def checked_task(task: Task, prompts: Prompts, limits: Limits) -> tuple[Task, list[str]]:
    """Encode and check the prompts of a task: all of data, the first of an endless task.

    Returns:
        The task, without the rows that `task.skip_bad_rows` leaves out; and what to warn of.

    Raises:
        TaskError: prompts cannot be used, and are not left out. It lists the first and says how many they are.
        TemplateError: the chat template cannot be rendered.
    """
    if isinstance(task, Questions):
        examples = list(task.examples)
        seen = _look(examples, [example.place for example in examples], prompts, limits)
        task = task.without(seen.faults)
        return task, [*task.warnings(), *_warnings(seen)]
    indices = range(CHECKED)
    examples = [task.example("train", index) for index in indices]
    seen = _look(examples, [f"problem {i}, {e.question[:60]!r}," for i, e in enumerate(examples)], prompts, limits)
    for place, fault in seen.faults.items():
        raise TaskError(
            f"{place} {fault}; {len(seen.faults):,} of the first {CHECKED} training problems cannot be used"
        )
    return task, _warnings(seen)


def settled(task: Task) -> dict[str, Any]:
    """What others build exactly this task with, beside the recipe's section."""
    return task.settled() if isinstance(task, Questions) else {}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """What was found in the prompts of a task, by place."""

    faults: dict[str, str]
    control: list[str]
    unknown: list[str]


def _look(examples: Sequence[Example], places: Sequence[str], prompts: Prompts, limits: Limits) -> _Seen:
    tokenizer = prompts.chat.tokenizer
    control, unknown = _control(tokenizer), _unknown(tokenizer)
    seen = _Seen(faults={}, control=[], unknown=[])
    encoded = watched(_encoded(examples, prompts), "encoding prompts", total=len(examples))
    for place, example, prompt in zip(places, examples, encoded, strict=True):
        said = contents(conversation_of(example))
        if isinstance(prompt, TemplateError):
            seen.faults[place] = f"is refused: {prompt}"
            continue
        if fault := limits.fault(prompt, said):
            seen.faults[place] = fault
        if control is not None and any(control.search(text) for text in said):
            seen.control.append(place)
        if unknown is not None and unknown in prompt.packed:
            seen.unknown.append(place)
    return seen


def _encoded(examples: Sequence[Example], prompts: Prompts) -> Iterator[EncodedPrompt | TemplateError]:
    """The prompts, which are encoded `AT_ONCE` together."""
    for start in range(0, len(examples), AT_ONCE):
        yield from _each(examples[start : start + AT_ONCE], prompts)


def _each(examples: Sequence[Example], prompts: Prompts) -> list[EncodedPrompt | TemplateError]:
    """The prompt of each problem, or why the template refuses it, such as for its roles.

    Raises:
        EndlessTemplate: the template takes too long for one of them.
    """
    try:
        return [*prompts.encoded(examples)]
    except EndlessTemplate:
        raise
    except TemplateError as error:
        if len(examples) == 1:
            return [error]
        return [prompt for example in examples for prompt in _each([example], prompts)]


def _warnings(seen: _Seen) -> list[str]:
    found = (
        (seen.control, "question(s) hold special tokens of the tokenizer, which the model takes as such"),
        (seen.unknown, "prompt(s) hold characters that the tokenizer does not know"),
    )
    return [f"{len(places):,} {what}; the first: {places[0]}" for places, what in found if places]


def _control(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return re.compile("|".join(map(re.escape, sorted(special)))) if special else None


def _unknown(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token of unknown text; None where it marks the beginning or the end, as where every byte is known."""
    unknown: Any = tokenizer.unk_token_id
    return None if unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id) else unknown


def check_ends(chat: Chat, ends: Collection[int], vocabulary: int) -> list[str]:
    """Hold the tokens that end a response against the model.

    Returns:
        What to warn of.

    Raises:
        RecipeError: no token that the model can sample ends a response.
    """
    names = ", ".join(f"{chat.tokenizer.convert_ids_to_tokens(end)!r} (id {end})" for end in sorted(ends))
    outside = [end for end in ends if end >= vocabulary]
    if not ends:
        raise RecipeError(
            "nothing ends a response: the tokenizer has no eos_token, the model names no end, and no chat template "
            'closes an answer. Name a token in rollout.stop, such as rollout.stop = ["\\n"]'
        )
    if len(outside) == len(ends):
        raise RecipeError(
            f"nothing ends a response: {names} cannot be sampled by a model with a vocabulary of {vocabulary}. "
            "Give the tokenizer another eos_token, or name a token in rollout.stop"
        )
    return [f"of the tokens that end a response ({names}) the model cannot sample {sorted(outside)}"] if outside else []
