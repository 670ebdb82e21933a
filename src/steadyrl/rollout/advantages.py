"""From rewards to advantages: each response relative to its group."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from steadyrl.algo import Advantage, informative, leave_one_out, without_truncated
from steadyrl.recipe import AdvantageSection, RecipeError
from steadyrl.rollout.groups import Group, Rewards
from steadyrl.types import Trajectory


def with_advantages(
    groups: Sequence[Group], rewards: Rewards, *, advantage: Advantage, normalise: bool, options: AdvantageSection
) -> list[list[Trajectory]]:
    """Give each response its advantage, and say whether it counts in the denominators.

    Args:
        groups: the responses.
        rewards: what they earned.
        advantage: computes the advantages of groups.
        normalise: divide by the standard deviation of the group, as the objective asks.
        options: what is filtered out.

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
    counted = known & informative(values, known=known)[:, None] if options.filter_groups else known
    rows = zip(
        torch.stack([found, excess], dim=-1).tolist(), counted.tolist(), _group_tokens(groups, known), strict=True
    )
    return [
        [
            Trajectory.single(
                group.prompt_ids,
                completion,
                advantage=advantage,
                group_tokens=tokens,
                excess=over_others,
                counted=counts,
            )
            for completion, (advantage, over_others), counts in zip(group.completions, pairs, some, strict=True)
        ]
        for group, (pairs, some, tokens) in zip(groups, rows, strict=True)
    ]


def _group_tokens(groups: Sequence[Group], known: Bool[Tensor, "groups responses"]) -> list[int]:
    """Sum |y| over the responses of each group that have a reward; over all, where none has and nothing is moved."""
    lengths = torch.tensor([[len(c.token_ids) for c in group.completions] for group in groups])
    return lengths.where(known | ~known.any(dim=1, keepdim=True), 0).sum(dim=1).tolist()
