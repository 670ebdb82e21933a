"""The rollouter: problems in, groups of responses and their rewards out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from steadyrl.algo import Advantage
from steadyrl.engine.base import Engine, EngineError, Request
from steadyrl.engine.returned import Asked, check_answers
from steadyrl.model.text import decode_response
from steadyrl.order import problem_indices, seed_of
from steadyrl.prompts import Prompts
from steadyrl.rollout.groups import Group, Rewards
from steadyrl.tasks.base import Split, Task
from steadyrl.tasks.batch import RewardRequest
from steadyrl.tasks.pool import RewardPool
from steadyrl.types import Completion, Sampling

_MOST_PARTS = 64  # names of parts that a step logs
_TAKEN = frozenset({"mean", "min", "max", "accuracy", "failures", "uniform_groups"})  # `reward/…` of our own


@dataclass(frozen=True, kw_only=True)
class Rollouter:
    """Asks an engine for responses to the problems of a task, and a verifier for their rewards."""

    task: Task
    """Problems, in this process."""
    prompts: Prompts
    """What the model is asked, problem by problem."""
    engine: Engine
    """μ: what samples."""
    pool: RewardPool
    """The verifier, in worker processes."""
    advantage: Advantage
    """How rewards become advantages."""
    model: PreTrainedModel
    """The sizes that the engine's answers must have."""
    tokenizer: PreTrainedTokenizerBase
    """Text of responses."""
    ends: frozenset[int]
    """Tokens that end a response."""
    sampling: Sampling
    """How the responses to train on are sampled."""
    seed: int
    """Of the problems' order, and of all random numbers."""
    strip_special: bool = False
    """Whether special tokens such as `<think>` are left out of a response's text."""

    def problems(self, step: int, count: int) -> list[int]:
        """Return the indices of the problems of a global step, which counts from 1."""
        return problem_indices(self.seed, step, count, self.task.size("train"))

    def rollout(self, step: int, *, prompts: int, responses: int) -> list[Group]:
        """Return the responses of a global step, `responses` to each of its problems; errors are those of `groups`."""
        indices = self.problems(step, prompts)
        return self.groups("train", indices, responses=responses, sampling=self.sampling, key=f"rollout/{step}")

    def groups(
        self, split: Split, indices: Sequence[int], *, responses: int, sampling: Sampling, key: str
    ) -> list[Group]:
        """Let the engine answer problems, `responses` times each; `key` names the random numbers.

        Raises:
            EngineError: a prompt does not fit the model, and the message names the problem; or what the engine
                returned cannot be right (`engine.returned`).
        """
        examples = [self.task.example(split, index) for index in indices]
        prompts, seed = self.prompts(examples), seed_of(self.seed, key)
        requests = [
            Request(token_ids=prompt.token_ids, responses=responses, sampling=sampling, seed=seed, place=place)
            for place, prompt in enumerate(prompts)
        ]
        try:
            self.engine.submit(requests)
        except EngineError as error:
            if error.prompt is None:
                raise
            question = examples[error.prompt].question
            raise EngineError(f"{split} problem {indices[error.prompt]}, {question[:60]!r}: {error}") from error
        version = self.engine.policy_version
        asked = Asked(model=self.model, requests=requests, ends=self.ends, policy_version=version)
        answered = {answer.place: answer.completions for answer in check_answers(self.engine.collect(), asked)}
        return [
            Group(
                index=index,
                example=example,
                prompt_text=prompt.text,
                prompt_ids=prompt.token_ids,
                completions=answered[place],
            )
            for place, (index, example, prompt) in enumerate(zip(indices, examples, prompts, strict=True))
        ]

    def rewards(self, split: Split, groups: Sequence[Group]) -> Rewards:
        """Ask the verifier for the reward of every response."""
        requests = [
            RewardRequest(
                split=split, index=group.index, completion=self.text(completion), context=group.context(completion)
            )
            for group in groups
            for completion in group.completions
        ]
        rewards = self.pool.rewards(requests)
        names = sorted({name for reward in rewards for name in reward.parts})[:_MOST_PARTS]
        return Rewards(
            values=_table([reward.value or 0.0 for reward in rewards], groups),
            known=_table([float(reward.value is not None) for reward in rewards], groups).bool(),
            parts={
                f"{name}_part" if name in _TAKEN else name: _table(
                    [reward.parts.get(name, math.nan) for reward in rewards], groups
                )
                for name in names
            },
            failures=tuple(reward.failure for reward in rewards),
        )

    def text(self, completion: Completion) -> str:
        """Return a response as verifiers and people read it."""
        return decode_response(self.tokenizer, completion.token_ids, ends=self.ends, strip_special=self.strip_special)


def _table(values: Sequence[float], groups: Sequence[Group]) -> Float[Tensor, "groups responses"]:
    return torch.tensor(values, dtype=torch.float32).view(len(groups), -1)
