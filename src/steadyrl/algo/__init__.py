"""Objectives and what they rest on: pure functions of tensors. Imports torch only."""

from steadyrl.algo.advantage import group_advantage
from steadyrl.algo.objective import CISPO, GRPO, MiniRL, Objective, Terms
from steadyrl.algo.ratio import discrepancy, importance_weight, staleness
from steadyrl.algo.trust import Clipped, decoupled_clip, unclipped
from steadyrl.types import Tokens

__all__ = [
    "CISPO",
    "GRPO",
    "Clipped",
    "MiniRL",
    "Objective",
    "Terms",
    "Tokens",
    "decoupled_clip",
    "discrepancy",
    "group_advantage",
    "importance_weight",
    "staleness",
    "unclipped",
]
