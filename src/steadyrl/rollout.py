"""The first half of a global step: prompts → completions → rewards → advantages."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steadyrl.algo import group_advantage, informative, leave_one_out, without_truncated
from steadyrl.config import Advantage
from steadyrl.engine.base import Engine, EngineError
from steadyrl.model.text import decode_response, encode_prompt
from steadyrl.order import seed_of
from steadyrl.session import Session
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
        EngineError: a prompt does not fit the model; the message names the problem.
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
    return [
        Group(index=index, example=example, prompt_ids=prompt, completions=tuple(completions))
        for index, example, prompt, completions in zip(indices, examples, prompts, answered, strict=True)
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
    if options.leave_one_out:
        found = leave_one_out(values)
    else:
        found = group_advantage(values, normalise=normalise, epsilon=options.epsilon)
    excess = leave_one_out(values)
    if options.filter_overlong:
        cut = torch.tensor([[c.finish_reason == "length" for c in group.completions] for group in groups])
        found, excess = without_truncated(found, cut), without_truncated(excess, cut)
    both = torch.stack([found, excess], dim=-1).tolist()
    return [
        [
            Response(
                prompt_ids=group.prompt_ids,
                completion=completion,
                advantage=advantage,
                group_tokens=sum(len(c.token_ids) for c in group.completions),
                excess=over_others,
            )
            for completion, (advantage, over_others) in zip(group.completions, row, strict=True)
        ]
        for group, row in zip(groups, both, strict=True)
    ]


def counted_groups(rewards: Rewards, *, parts: int, options: Advantage) -> list[int]:
    """How many groups each of `parts` equal mini-batches is divided by."""
    return _counted(rewards, options).view(parts, -1).sum(dim=1).tolist()


def counted_tokens(
    groups: Sequence[Sequence[Response]], rewards: Rewards, *, parts: int, options: Advantage
) -> list[int]:
    """The response tokens of those groups, in each of `parts` equal mini-batches."""
    tokens = torch.tensor([group[0].group_tokens for group in groups])
    return tokens.where(_counted(rewards, options), 0).view(parts, -1).sum(dim=1).tolist()


def _counted(rewards: Rewards, options: Advantage) -> Bool[Tensor, "groups"]:
    """Groups that count in the denominators."""
    everyone = torch.ones(len(rewards.values), dtype=torch.bool)
    return informative(rewards.values) if options.filter_groups else everyone


def rollout_metrics(groups: Sequence[Group], rewards: Rewards) -> dict[str, float]:
    """What the step sampled, in numbers."""
    completions = [c for group in groups for c in group.completions]
    values = rewards.values
    return {
        "reward/mean": values.mean().item(),
        "reward/accuracy": (values >= 1.0).float().mean().item(),
        "reward/failures": len(rewards.failures),
        "reward/uniform_groups": (~informative(values)).float().mean().item(),
        "response/length": sum(len(c.token_ids) for c in completions) / len(completions),
        "response/truncated": sum(c.finish_reason == "length" for c in completions) / len(completions),
    }
