"""The first half of a global step: prompts → completions → rewards → advantages."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steadyrl.algo import group_advantage, informative, leave_one_out, without_truncated
from steadyrl.config import Advantage
from steadyrl.engine.base import Engine, EngineError
from steadyrl.engine.returned import Asked, check_answers
from steadyrl.model.text import decode_response, encode_prompt
from steadyrl.order import seed_of
from steadyrl.session import Session, ends_of
from steadyrl.tasks.base import Example, Split, TaskError
from steadyrl.tasks.scoring import ScoreRequest
from steadyrl.types import Completion, Response, Sampling


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """A prompt and the responses to it."""

    index: int
    """Which problem of its split."""
    example: Example
    """The problem."""
    prompt_ids: tuple[int, ...]
    """Its tokens."""
    completions: tuple[Completion, ...]
    """The responses."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rewards:
    """What the responses of several groups earned."""

    values: Float[Tensor, "groups responses"]
    """Reward of each; 0 where scoring failed."""
    failures: tuple[str, ...]
    """Why scoring failed, for each response that it failed for."""


def sample_groups(
    session: Session,
    engine: Engine,
    split: Split,
    indices: Sequence[int],
    *,
    responses: int,
    sampling: Sampling,
    key: str,
) -> list[Group]:
    """Let the engine answer problems, `responses` times each; `key` names the random numbers.

    Raises:
        EngineError: a prompt does not fit the model, and the message names the problem; or what the engine returned
            cannot be right (`engine.returned`).
    """
    examples = [session.task.example(split, index) for index in indices]
    prompts = [encode_prompt(session.policy.tokenizer, example.question) for example in examples]
    try:
        answered = engine.generate(
            prompts, responses=responses, sampling=sampling, seed=seed_of(session.recipe.seed, key)
        )
    except EngineError as error:
        if error.prompt is None:
            raise
        question = examples[error.prompt].question
        raise EngineError(f"{split} problem {indices[error.prompt]}, {question[:60]!r}: {error}") from error
    asked = Asked(
        model=session.policy.model,
        prompts=prompts,
        responses=responses,
        sampling=sampling,
        ends=ends_of(session.recipe, session.policy),
        policy_version=engine.policy_version,
    )
    return [
        Group(index=index, example=example, prompt_ids=prompt, completions=completions)
        for index, example, prompt, completions in zip(
            indices, examples, prompts, check_answers(answered, asked), strict=True
        )
    ]


def score_groups(session: Session, split: Split, groups: Sequence[Group]) -> Rewards:
    """Score every response.

    Raises:
        TaskError: scoring failed for more than the recipe's share of the responses.
    """
    requests = [
        ScoreRequest(
            split=split,
            index=group.index,
            completion=decode_response(session.policy.tokenizer, completion.token_ids),
        )
        for group in groups
        for completion in group.completions
    ]
    scores = session.pool.score(requests)
    failures = tuple(score.failure for score in scores if score.failure is not None)
    limit = session.recipe.scoring.max_failures
    if len(failures) > limit * len(scores):
        raise TaskError(
            f"scoring failed for {len(failures)} of {len(scores)} responses, above scoring.max_failures = {limit}; "
            f"the first: {failures[0]}"
        )
    values = torch.tensor([score.reward for score in scores], dtype=torch.float32)
    return Rewards(values=values.view(len(groups), -1), failures=failures)


def with_advantages(
    groups: Sequence[Group], rewards: Rewards, *, normalise: bool, options: Advantage
) -> list[list[Response]]:
    """Responses with their advantage, group by group."""
    values = rewards.values
    found = leave_one_out(values) if options.leave_one_out else group_advantage(values, normalise=normalise)
    if options.filter_overlong:
        cut = torch.tensor([[c.finish_reason == "length" for c in group.completions] for group in groups])
        found = without_truncated(found, cut)
    advantages = found.tolist()
    return [
        [
            Response(
                prompt_ids=group.prompt_ids,
                completion=completion,
                advantage=advantage,
                group_tokens=sum(len(c.token_ids) for c in group.completions),
            )
            for completion, advantage in zip(group.completions, row, strict=True)
        ]
        for group, row in zip(groups, advantages, strict=True)
    ]


def counted_groups(rewards: Rewards, *, parts: int, options: Advantage) -> list[int]:
    """How many groups each of `parts` equal mini-batches is divided by."""
    counted = informative(rewards.values) if options.filter_groups else torch.ones(len(rewards.values))
    return counted.view(parts, -1).sum(dim=1).long().tolist()


def rollout_metrics(groups: Sequence[Group], rewards: Rewards) -> dict[str, float]:
    """What the step sampled, in numbers."""
    completions = [c for group in groups for c in group.completions]
    values = rewards.values
    return {
        "reward/mean": values.mean().item(),
        "reward/accuracy": (values >= 1.0).float().mean().item(),
        "reward/failures": len(rewards.failures),
        "reward/uniform_groups": (values.amax(dim=1) == values.amin(dim=1)).float().mean().item(),
        "response/length": sum(len(c.token_ids) for c in completions) / len(completions),
        "response/truncated": sum(c.finish_reason == "length" for c in completions) / len(completions),
    }
