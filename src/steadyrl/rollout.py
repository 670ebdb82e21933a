"""The first half of a global step: prompts → completions → rewards → advantages."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steadyrl.algo import Advantage, informative, leave_one_out, without_truncated
from steadyrl.engine.base import Engine, EngineError
from steadyrl.engine.returned import Asked, check_answers
from steadyrl.model.text import decode_response
from steadyrl.order import seed_of
from steadyrl.recipe import AdvantageSection, RecipeError
from steadyrl.session import Session
from steadyrl.tasks.base import Context, Example, Split, TaskError
from steadyrl.tasks.pool import RewardRequest
from steadyrl.types import Completion, Response, Sampling

_MOST_PARTS = 64  # names of parts that a step logs
_TAKEN = frozenset({"mean", "min", "max", "accuracy", "failures", "uniform_groups"})  # `reward/…` of our own


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """A prompt and the responses to it."""

    index: int
    """Which problem of its split."""
    example: Example
    """The problem."""
    prompt_text: str
    """What the model was shown: the problem as the chat template renders it."""
    prompt_ids: tuple[int, ...]
    """Its tokens."""
    completions: tuple[Completion, ...]
    """The responses."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rewards:
    """What the responses of several groups earned."""

    values: Float[Tensor, "groups responses"]
    """Reward of each; 0 where it is missing."""
    known: Bool[Tensor, "groups responses"]
    """Which responses have a reward; the verifier failed on the others."""
    parts: Mapping[str, Float[Tensor, "groups responses"]]
    """Further numbers that the verifier returned, by name; NaN where it returned none. One that has the name of a
    metric of ours, such as `mean`, is called `mean_part`."""
    failures: tuple[str | None, ...]
    """Why the verifier failed, for each response; None where it did not."""

    @property
    def failed(self) -> tuple[str, ...]:
        """The reasons alone, of the responses that the verifier failed on."""
        return tuple(reason for reason in self.failures if reason is not None)


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
    prompts = session.prompts(examples)
    try:
        answered = engine.generate(
            [prompt.token_ids for prompt in prompts],
            responses=responses,
            sampling=sampling,
            seed=seed_of(session.recipe.seed, key),
        )
    except EngineError as error:
        if error.prompt is None:
            raise
        question = examples[error.prompt].question
        raise EngineError(f"{split} problem {indices[error.prompt]}, {question[:60]!r}: {error}") from error
    asked = Asked(
        model=session.policy.model,
        prompts=[prompt.token_ids for prompt in prompts],
        responses=responses,
        sampling=sampling,
        ends=session.ends,
        policy_version=engine.policy_version,
    )
    return [
        Group(
            index=index,
            example=example,
            prompt_text=prompt.text,
            prompt_ids=prompt.token_ids,
            completions=completions,
        )
        for index, example, prompt, completions in zip(
            indices, examples, prompts, check_answers(answered, asked), strict=True
        )
    ]


def reward_groups(session: Session, split: Split, groups: Sequence[Group]) -> Rewards:
    """The reward of every response."""
    requests = [
        RewardRequest(
            split=split,
            index=group.index,
            completion=response_text(session, completion),
            context=context_of(group, completion),
        )
        for group in groups
        for completion in group.completions
    ]
    rewards = session.pool.rewards(requests)
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


def context_of(group: Group, completion: Completion) -> Context:
    """What a verifier may ask about a response beside its text."""
    return Context(
        prompt_text=group.prompt_text, finish_reason=completion.finish_reason, token_ids=completion.token_ids
    )


def response_text(session: Session, completion: Completion) -> str:
    """A response as verifiers and people get it."""
    return decode_response(
        session.policy.tokenizer,
        completion.token_ids,
        ends=session.ends,
        strip_special=session.recipe.rollout.strip_special,
    )


def require_rewards(rewards: Rewards, *, limit: float) -> None:
    """Stop a run whose verifier fails too often.

    Raises:
        TaskError: the verifier failed on more than the share `limit` of the responses.
    """
    if too_many_failures(rewards, limit=limit):
        failed = rewards.failed
        raise TaskError(
            f"the verifier failed on {len(failed)} of {len(rewards.failures)} responses, above verifier.max_failures = "
            f"{limit}; the first: {failed[0]}"
        )


def too_many_failures(rewards: Rewards, *, limit: float) -> bool:
    """Whether the verifier failed on more than the share `limit` of the responses."""
    return len(rewards.failed) > limit * len(rewards.failures)


def _table(values: Sequence[float], groups: Sequence[Group]) -> Float[Tensor, "groups responses"]:
    return torch.tensor(values, dtype=torch.float32).view(len(groups), -1)


def with_advantages(
    groups: Sequence[Group],
    rewards: Rewards,
    *,
    advantage: Advantage,
    normalise: bool,
    options: AdvantageSection,
) -> list[list[Response]]:
    """Responses with their advantage, group by group.

    Raises:
        RecipeError: the advantages are not finite numbers, one for each response.
    """
    values, known = rewards.values, rewards.known
    found = advantage(values, known=known, normalise=normalise)
    if found.shape != values.shape or not found[known].isfinite().all():
        raise RecipeError(
            f"advantage.name = {options.name!r} returned {found.tolist()} for the rewards {values.tolist()}; it must "
            "return a finite number for each of them"
        )
    found = found.masked_fill(~known, 0.0)
    excess = leave_one_out(values, known=known)
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
                group_tokens=tokens,
                excess=over_others,
            )
            for completion, (advantage, over_others) in zip(group.completions, row, strict=True)
        ]
        for group, row, tokens in zip(groups, both, _group_tokens(groups, known), strict=True)
    ]


def _group_tokens(groups: Sequence[Group], known: Bool[Tensor, "groups responses"]) -> list[int]:
    """Σ|y| over the responses of each group that have a reward; over all, where none has and nothing is moved."""
    lengths = torch.tensor([[len(c.token_ids) for c in group.completions] for group in groups])
    return lengths.where(known | ~known.any(dim=1, keepdim=True), 0).sum(dim=1).tolist()


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    """What a mini-batch is divided by."""

    responses: int
    """Responses that have a reward."""
    groups: int
    """Groups with such a response."""


def counted(rewards: Rewards, *, parts: int, options: AdvantageSection) -> list[Counted]:
    """What each of `parts` equal mini-batches is divided by: what has a reward and is not filtered out."""
    counts = _counts(rewards, options)
    return [
        Counted(responses=int(part.sum()), groups=int(part.any(dim=1).sum()))
        for part in counts.view(parts, -1, counts.shape[1])
    ]


def counted_tokens(
    groups: Sequence[Sequence[Response]], rewards: Rewards, *, parts: int, options: AdvantageSection
) -> list[int]:
    """The tokens of those responses, in each of the mini-batches."""
    tokens = torch.tensor([group[0].group_tokens for group in groups])
    return tokens.where(_counts(rewards, options).any(dim=1), 0).view(parts, -1).sum(dim=1).tolist()


def _counts(rewards: Rewards, options: AdvantageSection) -> Bool[Tensor, "groups responses"]:
    """Which responses count in the denominators."""
    if not options.filter_groups:
        return rewards.known
    return rewards.known & informative(rewards.values, known=rewards.known)[:, None]


def rollout_metrics(groups: Sequence[Group], rewards: Rewards, *, correct_at: float) -> dict[str, float]:
    """What the step sampled, in numbers."""
    completions = [c for group in groups for c in group.completions]
    values, known = rewards.values, rewards.known
    lowest, highest = (values[known].min(), values[known].max()) if known.any() else (math.nan, math.nan)
    return {
        "reward/mean": values[known].mean().item(),
        "reward/min": float(lowest),
        "reward/max": float(highest),
        "reward/accuracy": (values[known] >= correct_at).float().mean().item(),
        "reward/failures": len(rewards.failed),
        "reward/uniform_groups": (~informative(values, known=known)).float().mean().item(),
        "response/length": sum(len(c.token_ids) for c in completions) / len(completions),
        "response/truncated": sum(c.finish_reason == "length" for c in completions) / len(completions),
        **{f"reward/{name}": float(part.nanmean()) for name, part in rewards.parts.items()},
    }
