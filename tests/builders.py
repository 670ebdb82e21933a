"""Small models and records that the tests share. Building one takes about 20 ms."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from steadyrl.model.loading import Policy, build_tiny
from steadyrl.types import Completion, Trajectory

ALPHABET = "0123456789+-=;> abcdefghijklmnopqrstuvwxyz"
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True}

LATENT = {
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
ROUTED = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES = {  # of mixtures of experts
    "qwen3_moe": MOE,
    "qwen2_moe": MOE | {"shared_expert_intermediate_size": 16},
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 16},
    "granitemoe": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "glm4_moe": ROUTED | {"first_k_dense_replace": 0},
    "deepseek_v3": ROUTED | LATENT | {"first_k_dense_replace": 0, "n_group": 4, "topk_group": 2},
    "gpt_oss": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen3_next": MOE  # its first layer carries a recurrent state
    | {"shared_expert_intermediate_size": 16, "layer_types": ["linear_attention", "full_attention"]}
    | {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
}


def tiny_policy(seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any) -> Policy:
    """A Qwen3-MoE of 2 layers with 8 experts, 2 of which each token takes."""
    fields = SMALL | MOE | config
    return build_tiny(family="qwen3_moe", alphabet=ALPHABET, config=fields, seed=seed, dtype=dtype)


def dense_policy(seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any) -> Policy:
    """A dense Qwen3 of 2 layers."""
    return build_tiny(family="qwen3", alphabet=ALPHABET, config=SMALL | config, seed=seed, dtype=dtype)


def family_policy(name: str, **config: Any) -> Policy:
    """A small model of one of `FAMILIES`."""
    fields = SMALL | FAMILIES[name] | config
    return build_tiny(family=name, alphabet=ALPHABET, config=fields, seed=0, dtype=torch.float32)


def completion(
    answer: Sequence[int],
    *,
    logprobs: Tensor | None = None,
    routes: Tensor | None = None,
    finish_reason: Literal["stop", "length"] = "length",
    policy_version: int = 0,
) -> Completion:
    """What an engine returns, with log-probabilities of −1 unless told."""
    return Completion(
        token_ids=tuple(answer),
        logprobs=torch.full((len(answer),), -1.0) if logprobs is None else logprobs,
        routes=routes,
        finish_reason=finish_reason,
        policy_version=policy_version,
    )


def response(
    prompt: Sequence[int], answer: Sequence[int], *, advantage: float = 1.0, group_tokens: int = 10, **fields: Any
) -> Trajectory:
    """A prompt and its `completion`, on their way to the trainer."""
    return Trajectory.single(prompt, completion(answer, **fields), advantage=advantage, group_tokens=group_tokens)


def random_ids(count: int, *, seed: int) -> tuple[int, ...]:
    """Tokens of the tiny vocabulary, none of them padding, end or unknown."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(3, 3 + len(ALPHABET), (count,), generator=generator).tolist())
