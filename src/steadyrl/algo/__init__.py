"""Objectives and what they rest on: pure functions of tensors. Imports torch only."""

from steadyrl.algo.advantage import (
    Advantage,
    GroupAdvantage,
    group_advantage,
    informative,
    leave_one_out,
    without_truncated,
)
from steadyrl.algo.objectives.base import Objective, Terms, Weighed, refuse_broken
from steadyrl.algo.objectives.composed import Composed
from steadyrl.algo.objectives.dppo import DPPOKL, DPPOTV
from steadyrl.algo.objectives.minirl import MiniRL, MinPRO, PrefixIS, Reinforce
from steadyrl.algo.objectives.ppo import CISPO, DAPO, GRPO, GSPO, OPSM, DrGRPO
from steadyrl.algo.objectives.soft import SAPO, VESPO
from steadyrl.algo.ratio import at_level, importance_weight, masked_weight, mismatch, product, staleness
from steadyrl.algo.surrogate import gradient_gap, gram, surrogate_error, value_gap
from steadyrl.algo.trust import (
    Clipped,
    binary_kl,
    binary_tv,
    decoupled_clip,
    divergence_mask,
    off_policy_sequence_mask,
    second_moment_mask,
)
from steadyrl.types import Tokens

__all__ = [
    "CISPO",
    "DAPO",
    "DPPOKL",
    "DPPOTV",
    "GRPO",
    "GSPO",
    "OPSM",
    "SAPO",
    "VESPO",
    "Advantage",
    "Clipped",
    "Composed",
    "DrGRPO",
    "GroupAdvantage",
    "MinPRO",
    "MiniRL",
    "Objective",
    "PrefixIS",
    "Reinforce",
    "Terms",
    "Tokens",
    "Weighed",
    "at_level",
    "binary_kl",
    "binary_tv",
    "decoupled_clip",
    "divergence_mask",
    "gradient_gap",
    "gram",
    "group_advantage",
    "importance_weight",
    "informative",
    "leave_one_out",
    "masked_weight",
    "mismatch",
    "off_policy_sequence_mask",
    "product",
    "refuse_broken",
    "second_moment_mask",
    "staleness",
    "surrogate_error",
    "value_gap",
    "without_truncated",
]
