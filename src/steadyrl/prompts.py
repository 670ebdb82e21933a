"""What a run asks its model: every prompt is rendered, encoded and checked before a weight is loaded."""

import re
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from steadyrl.config import QuestionsTask, Recipe, RecipeError
from steadyrl.model.chat import Chat, Prompt, asked, contents
from steadyrl.model.template import Conversation
from steadyrl.tasks.base import Example, Split, Task, TaskError
from steadyrl.tasks.build import build_task

CHECKED = 64
"""Problems of an endless task that are checked."""
AT_ONCE = 1024
"""Prompts that are encoded together."""
LISTED = 10
"""Faults that are written out; the others are counted."""
SECONDS_BETWEEN_LINES = 5.0
"""Progress is told so often, where it takes longer."""
SPLITS: tuple[Split, ...] = ("train", "held_out")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a prompt must fit into."""

    vocabulary: int
    """Tokens that the model knows."""
    context: int | None
    """Most tokens of prompt and response together; None: any number."""
    micro_tokens: int
    """`update.micro_tokens`."""
    max_new_tokens: int
    """`rollout.max_new_tokens`."""
    ends: frozenset[int]
    """Tokens that end a response by themselves, without those of `rollout.stop`."""

    def fault(self, prompt: Prompt, said: Sequence[str]) -> str | None:
        """Why a prompt cannot be used, or None.

        Args:
            prompt: as the model would see it.
            said: what must stand in it.
        """
        length, response = len(prompt.packed), self.max_new_tokens
        if any(text.strip() not in prompt.text for text in said):
            return "the chat template changes or drops the question"
        if not length:
            return "the prompt is empty"
        if max(prompt.packed) >= self.vocabulary:
            return f"the prompt holds token {max(prompt.packed)}, outside the model's vocabulary of {self.vocabulary}"
        if prompt.packed[-1] in self.ends:
            return "the prompt ends with a token that ends a response"
        if self.context is not None and length + response > self.context:
            return (
                f"the prompt has {length} tokens; with max_new_tokens = {response} it exceeds the model's context of "
                f"{self.context}"
            )
        if length + response - 1 > self.micro_tokens:
            return (
                f"the prompt has {length} tokens; with max_new_tokens = {response} it exceeds update.micro_tokens = "
                f"{self.micro_tokens}"
            )
        return None


class Prompts:
    """The prompts of a task. Those of data are kept; endless ones are encoded when they are drawn."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self._kept: dict[str, Prompt] = {}

    def __call__(self, examples: Sequence[Example]) -> list[Prompt]:
        """The prompts of problems."""
        new = [example for example in examples if example.place not in self._kept]
        encoded = iter(self.chat.encode([conversation_of(example) for example in new]) if new else ())
        return [self._kept[e.place] if e.place in self._kept else next(encoded) for e in examples]

    def encoded(self, examples: Sequence[Example]) -> list[Prompt]:
        """The prompts of problems; those of data are remembered."""
        found = self(examples)
        self._kept |= {example.place: prompt for example, prompt in zip(examples, found, strict=True) if example.place}
        return found


def conversation_of(example: Example) -> Conversation:
    """The turns that the chat template gets."""
    return example.messages or asked(example.question)


def checked_task(
    recipe: Recipe, task: Task, prompts: Prompts, limits: Limits
) -> tuple[Task, tuple[str, ...], list[str]]:
    """Encode the prompts of a task: all of data, the first of an endless task.

    Returns:
        The task, which is another where rows were left out; their places; and notices.

    Raises:
        TaskError: prompts cannot be used, and `task.skip_bad_rows` does not leave them out.
        TemplateError: the chat template cannot be rendered.
    """
    left_out: dict[str, str] = {}
    while True:
        seen = _look(task, prompts, limits)
        if not seen.faults:
            return task, tuple(left_out), _notices(seen, left_out)
        if not (isinstance(recipe.task, QuestionsTask) and recipe.task.skip_bad_rows):
            raise TaskError(_refusal(recipe, seen.faults))
        left_out |= seen.faults
        task = build_task(recipe.task.kind, seed=recipe.seed, parameters=task_fields(recipe, left_out))


def task_fields(recipe: Recipe, left_out: Collection[str], changed: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The recipe's task section as plain values, for the run and its scoring workers."""
    fields = recipe.task.model_dump() | dict(changed or {})
    return fields | {"leave_out": list(left_out)} if left_out else fields


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """What was found in the prompts of a task, by place."""

    faults: dict[str, str]
    control: list[str]
    unknown: list[str]


def _look(task: Task, prompts: Prompts, limits: Limits) -> _Seen:
    tokenizer = prompts.chat.tokenizer
    control, unknown = _control(tokenizer), tokenizer.unk_token_id
    seen = _Seen(faults={}, control=[], unknown=[])
    told = time.monotonic()
    for split in SPLITS:
        size = task.size(split)
        indices = range(size if size is not None else CHECKED if split == "train" else 0)
        for start in range(0, len(indices), AT_ONCE):
            part = indices[start : start + AT_ONCE]
            examples = [task.example(split, index) for index in part]
            for index, example, prompt in zip(part, examples, prompts.encoded(examples), strict=True):
                place = example.place or f"{split} problem {index}, {example.question[:60]!r}"
                said = contents(conversation_of(example))
                if fault := limits.fault(prompt, said):
                    seen.faults[place] = fault
                if control is not None and any(control.search(text) for text in said):
                    seen.control.append(place)
                if unknown is not None and unknown in prompt.packed:
                    seen.unknown.append(place)
            if time.monotonic() - told > SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                print(f"encoding prompts ({split}): {part.stop:,} of {len(indices):,}", file=sys.stderr)
    return seen


def _refusal(recipe: Recipe, faults: Mapping[str, str]) -> str:
    lines = [f"  {place}: {fault}" for place, fault in list(faults.items())[:LISTED]]
    more = [f"  … and {len(faults) - LISTED:,} more"] if len(faults) > LISTED else []
    skip = ", or leave such rows out: task.skip_bad_rows = true" if isinstance(recipe.task, QuestionsTask) else ""
    head = f"{len(faults):,} prompt(s) of the {recipe.task.kind} task cannot be used:"
    return "\n".join([head, *lines, *more, f"Shorten the prompt or lower max_new_tokens{skip}"])


def _notices(seen: _Seen, left_out: Mapping[str, str]) -> list[str]:
    said = []
    if left_out:
        place, fault = next(iter(left_out.items()))
        said.append(f"task.skip_bad_rows left {len(left_out):,} row(s) out; the first, {place}: {fault}")
    if seen.control:
        said.append(
            f"{len(seen.control):,} question(s) hold special tokens of the tokenizer, which the model takes as such; "
            f"the first: {seen.control[0]}"
        )
    if seen.unknown:
        said.append(
            f"{len(seen.unknown):,} prompt(s) hold characters that the tokenizer does not know; "
            f"the first: {seen.unknown[0]}"
        )
    return said


def _control(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return re.compile("|".join(map(re.escape, sorted(special)))) if special else None


def check_ends(chat: Chat, ends: Collection[int], vocabulary: int) -> list[str]:
    """Hold the tokens that end a response against the model.

    Returns:
        Notices.

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
