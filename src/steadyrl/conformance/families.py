"""The mixture-of-experts families of transformers, each with what makes a small model of it and its gate by formula.

Written down apart from the code that is checked: how a family turns the dense logits of its router into the weights
of the chosen experts is stated here once more, from its published form.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

LAYERS, EXPERTS, SLOTS = 3, 8, 2

SMALL: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "n_routed_experts": EXPERTS,
    "moe_num_experts": EXPERTS,
    "num_experts_per_tok": SLOTS,
    "moe_topk": SLOTS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}
"""Every size that families share by name; a family gets those that its config knows."""
EXPERT_COUNTS = {key for key, value in SMALL.items() if "expert" in key and value == EXPERTS}

LATENT = {
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
INDEXED = LATENT | {"q_lora_rank": 16, "index_topk": 64, "index_head_dim": 16, "index_n_heads": 2}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "full_attention"],
}
SPARSE_FROM_1 = {"mlp_layer_types": ["dense", "sparse", "sparse"]}
GROUPED = {"n_group": 4, "topk_group": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """How dense router logits become the weights of the chosen experts."""

    score: Literal["softmax", "sigmoid", "sqrtsoftplus", "sparsemixer", "with_shared"] = "softmax"
    """From logits to scores, over all experts."""
    normalised: bool = True
    """Whether the weights of the chosen are divided by their sum."""
    scaled_by: str | None = None
    """The field of the config that multiplies them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A small model of one family."""

    gate: Gate = field(default_factory=Gate)
    """Its gate weights."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Fields beyond `SMALL`, or other values."""
    model_type: str | None = None
    """Name in transformers, where it is not the family's own."""


SIGMOID = Gate(score="sigmoid")
SCALED = Gate(score="sigmoid", scaled_by="routed_scaling_factor")

FAMILIES: dict[str, Family] = {
    "afmoe": Family(gate=Gate(score="sigmoid", scaled_by="route_scale"), config={"num_dense_layers": 1}),
    "aria_text": Family(),
    "axk1": Family(gate=SCALED, config=LATENT | GROUPED | {"q_lora_rank": 16}),
    "axk2": Family(gate=SCALED, config=INDEXED | GROUPED | SPARSE_FROM_1),
    "cohere2_moe": Family(),
    "dbrx": Family(
        config={
            "d_model": 32,
            "n_heads": 4,
            "n_layers": LAYERS,
            "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
            "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 16, "moe_num_experts": EXPERTS, "moe_top_k": SLOTS},
        }
    ),
    "deepseek_v2": Family(gate=Gate(normalised=False, scaled_by="routed_scaling_factor"), config=LATENT),
    "deepseek_v2 (group-limited)": Family(
        model_type="deepseek_v2",
        gate=Gate(normalised=False, scaled_by="routed_scaling_factor"),
        config=LATENT | GROUPED | {"topk_method": "group_limited_greedy"},
    ),
    "deepseek_v3": Family(gate=SCALED, config=LATENT | GROUPED | {"first_k_dense_replace": 1}),
    "deepseek_v32": Family(gate=SCALED, config=INDEXED | GROUPED | SPARSE_FROM_1),
    "deepseek_v4": Family(
        gate=Gate(score="sqrtsoftplus", scaled_by="routed_scaling_factor"),
        config={"mlp_layer_types": ["moe"] * LAYERS, "layer_types": ["sliding_attention"] * LAYERS}
        | {"q_lora_rank": 16, "o_lora_rank": 16, "o_groups": 2, "qk_rope_head_dim": 4, "num_key_value_heads": 1},
    ),
    "doge": Family(config={"is_moe": True, "num_experts": 16}),
    "dots1": Family(gate=Gate(score="sigmoid", normalised=False, scaled_by="routed_scaling_factor"), config={"n_shared_experts": 1}),
    "ernie4_5_moe": Family(),
    "exaone_moe": Family(gate=SCALED, config=SPARSE_FROM_1),
    "flex_olmo": Family(gate=Gate(normalised=False)),
    "gemma4_text": Family(
        config={"enable_moe_block": True, "top_k_experts": SLOTS}
        | {"vocab_size_per_layer_input": 48, "hidden_size_per_layer_input": 16}
    ),
    "glm4_moe": Family(gate=SCALED, config={"first_k_dense_replace": 1}),
    "glm4_moe_lite": Family(gate=SCALED, config=LATENT | SPARSE_FROM_1),
    "glm_moe_dsa": Family(gate=SCALED, config=INDEXED | SPARSE_FROM_1),
    "gpt_oss": Family(),
    "granitemoe": Family(),
    "granitemoe_swa": Family(),
    "granitemoehybrid": Family(
        config={"layer_types": ["linear_attention", "full_attention", "full_attention"]}
        | {"shared_intermediate_size": 16, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8},
    ),
    "granitemoeshared": Family(config={"shared_intermediate_size": 16}),
    "hunyuan_v1_moe": Family(),
    "hy_v3": Family(gate=Gate(score="sigmoid", scaled_by="router_scaling_factor"), config=SPARSE_FROM_1),
    "hy_v4": Family(gate=SCALED, config=INDEXED | SPARSE_FROM_1),
    "inkling_text": Family(
        gate=Gate(score="with_shared", scaled_by="route_scale"),
        config={"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8},
    ),
    "jamba": Family(
        gate=Gate(normalised=False),
        config={"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4},
    ),
    "jetmoe": Family(),
    "kimi_linear": Family(
        gate=SCALED,
        config=LATENT | SPARSE_FROM_1 | {"linear_head_dim": 8, "linear_num_heads": 4, "layer_types": LINEAR["layer_types"]},
    ),
    "laguna": Family(gate=SIGMOID, config=SPARSE_FROM_1),
    "lfm2_moe": Family(gate=Gate(score="sigmoid", scaled_by="routed_scaling_factor"), config={"num_dense_layers": 1, "layer_types": ["conv", "full_attention", "full_attention"]}),
    "llama4_text": Family(
        gate=Gate(score="sigmoid", normalised=False),
        config={"num_experts_per_tok": 1, "intermediate_size": 16, "intermediate_size_mlp": 48},
    ),
    "longcat_flash": Family(
        gate=Gate(normalised=False, scaled_by="routed_scaling_factor"),
        config=LATENT
        | {"q_lora_rank": 16, "num_layers": 2, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 16, "zero_expert_num": 2},
    ),
    "mellum": Family(),
    "mimo_v2_flash": Family(gate=SCALED, config=SPARSE_FROM_1),
    "minimax": Family(),
    "minimax_m2": Family(gate=SIGMOID),
    "minimax_m3_vl_text": Family(
        gate=SIGMOID, config=SPARSE_FROM_1 | {"dense_intermediate_size": 48, "shared_intermediate_size": 16}
    ),
    "mixtral": Family(),
    "nemotron_h": Family(
        gate=SCALED,
        config={"layers_block_type": ["linear_attention", "moe", "full_attention", "moe"]}
        | {"ssm_state_size": 8, "mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 2}
        | {"moe_shared_expert_intermediate_size": 16},
    ),
    "olmoe": Family(gate=Gate(normalised=False)),
    "phimoe": Family(gate=Gate(score="sparsemixer")),
    "qwen2_moe": Family(gate=Gate(normalised=False)),
    "qwen3_5_moe_text": Family(config=LINEAR),
    "qwen3_moe": Family(),
    "qwen3_next": Family(config=LINEAR),
    "qwen4_exp_text": Family(
        config=LINEAR
        | {"hc_lowrank": 8, "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8}
        | {"indexer_budget": 64, "indexer_compress_ratio": 4},
    ),
    "solar_open": Family(gate=SCALED),
    "zaya": Family(config={"num_experts_per_tok": 1}),
}


def small_config(name: str, *, experts: int = EXPERTS) -> PreTrainedConfig:
    """The config of a family's small model."""
    family = FAMILIES[name]
    base = AutoConfig.for_model(family.model_type or name)
    known = {*vars(base), *type(base).attribute_map}
    shared = {key: value for key, value in SMALL.items() if key in known}
    config = AutoConfig.for_model(family.model_type or name, **{**shared, **family.config})
    for part in (config, *(getattr(config, key) for key in config.sub_configs)):
        for key in EXPERT_COUNTS & {*vars(part)}:
            setattr(part, key, experts)
    return config


@torch.no_grad()
def build(config: PreTrainedConfig, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model with random weights, also where the family starts from zeros, as the biases of a choice do."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and not tensor.any():
            tensor.normal_(std=0.1)
    return model
