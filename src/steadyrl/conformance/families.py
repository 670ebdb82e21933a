"""The mixture-of-experts families of transformers: how to build a small model of each, and the formula of its gate.

The formulas turn the dense logits of a router into the weights of the chosen experts. They are written from the
published form of each family, independently of the code that is checked.
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
CHOICE = {"num_experts_per_tok", "moe_topk", "n_group", "topk_group", "topk_method", "expert_selection_fn"}

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
DEEPSEEK_V4 = {
    "layer_types": ["sliding_attention"] * LAYERS,
    "q_lora_rank": 16,
    "o_lora_rank": 16,
    "o_groups": 2,
    "qk_rope_head_dim": 4,
    "num_key_value_heads": 1,
}
GROUPED = {"n_group": 4, "topk_group": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """How dense router logits become the weights of the chosen experts."""

    score: Literal["softmax", "sigmoid", "sqrtsoftplus", "sparsemixer", "with_shared"] = "softmax"
    """From logits to scores, over all experts."""
    normalised: bool | Literal["as configured"] = True
    """Whether the weights of the chosen are divided by their sum; some families leave it to `norm_topk_prob`."""
    scaled_by: str | None = None
    """The field of the config that multiplies them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A small model of one family."""

    gate: Gate | None = field(default_factory=Gate)
    """Its gate weights; None where no formula is known."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Fields beyond `SMALL`, or other values."""
    model_type: str | None = None
    """Name in transformers, where it is not the family's own."""
    refused: str | None = None
    """Why replay refuses it, in words of the message; None for a family that conforms."""


SIGMOID = Gate(score="sigmoid")
SCALED = Gate(score="sigmoid", normalised="as configured", scaled_by="routed_scaling_factor")
SOFTMAX = Gate(normalised="as configured")

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
        config=DEEPSEEK_V4 | {"mlp_layer_types": ["moe"] * LAYERS},
    ),
    "deepseek_v4 (hash layers)": Family(
        model_type="deepseek_v4",
        config=DEEPSEEK_V4 | {"mlp_layer_types": ["hash_moe", "moe", "moe"]},
        refused="no expert choice was seen",
    ),
    "doge": Family(config={"is_moe": True}, refused="has experts"),
    "dots1": Family(gate=SCALED, config={"n_shared_experts": 1}),
    "ernie4_5_moe": Family(),
    "exaone_moe": Family(gate=SCALED, config=SPARSE_FROM_1),
    "flex_olmo": Family(gate=SOFTMAX),
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
    "jetmoe": Family(refused="has experts"),
    "kimi_linear": Family(
        gate=SCALED,
        config=LATENT
        | SPARSE_FROM_1
        | {"linear_head_dim": 8, "linear_num_heads": 4, "layer_types": LINEAR["layer_types"]},
    ),
    "laguna": Family(gate=SIGMOID, config=SPARSE_FROM_1),
    "lfm2_moe": Family(
        gate=SCALED, config={"num_dense_layers": 1, "layer_types": ["conv", "full_attention", "full_attention"]}
    ),
    "llama4_text": Family(
        gate=Gate(score="sigmoid", normalised=False),
        config={"num_experts_per_tok": 1, "intermediate_size": 16, "intermediate_size_mlp": 48},
    ),
    "longcat_flash": Family(
        gate=Gate(normalised=False, scaled_by="routed_scaling_factor"),
        config=LATENT
        | {
            "q_lora_rank": 16,
            "num_layers": 2,
            "ffn_hidden_size": 48,
            "expert_ffn_hidden_size": 16,
            "zero_expert_num": 2,
        },
    ),
    "mellum": Family(gate=SOFTMAX),
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
    "olmoe": Family(gate=SOFTMAX),
    "phimoe": Family(gate=Gate(score="sparsemixer")),
    "qwen2_moe": Family(gate=SOFTMAX),
    "qwen3_5_moe_text": Family(config=LINEAR),
    "qwen3_moe": Family(gate=SOFTMAX),
    "qwen3_next": Family(gate=SOFTMAX, config=LINEAR),
    "qwen4_exp_text": Family(
        gate=SOFTMAX,
        config=LINEAR
        | {"hc_lowrank": 8, "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8}
        | {"indexer_budget": 64, "indexer_compress_ratio": 4},
    ),
    "solar_open": Family(gate=SCALED),
    "zaya": Family(config={"num_experts_per_tok": 1}, refused="no expert choice was seen"),
}


def family_of(model_type: str) -> Family:
    """The family by the name that transformers has for it; one that is not known here has no formula."""
    known = {family.model_type or name: family for name, family in reversed(FAMILIES.items())}
    return known.get(model_type, Family(gate=None))


def small_config(
    own: PreTrainedConfig, family: Family, *, experts: int = EXPERTS, as_found: bool = False
) -> PreTrainedConfig:
    """The config of a small model: the switches and factors of `own`, the sizes of `SMALL` and of its family.

    `as_found` also keeps what shapes the choice: one expert or several, groups or none, and its method.
    """
    known = {*vars(own), *type(own).attribute_map}
    switches = {k: v for k, v in vars(own).items() if isinstance(v, bool | float) and not k.startswith("_")}
    shared = {key: value for key, value in SMALL.items() if key in known}
    fields = {**switches, **shared, **family.config}
    if as_found:
        kept = {key: getattr(own, key) for key in CHOICE & known}
        fields |= {key: value for key, value in kept.items() if isinstance(value, str) or value in (None, 1)}
    config = AutoConfig.for_model(own.model_type, **fields)
    for part in (config, *(getattr(config, key) for key in config.sub_configs)):
        for key in EXPERT_COUNTS & {*vars(part)}:
            setattr(part, key, experts)
    return config


def named_config(name: str, *, experts: int = EXPERTS) -> PreTrainedConfig:
    """The config of a small model of a family that is listed here."""
    family = FAMILIES[name]
    return small_config(AutoConfig.for_model(family.model_type or name), family, experts=experts)


@torch.no_grad()
def build(config: PreTrainedConfig, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model with random weights, also where the family starts from zeros, as the biases of a choice do."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and not tensor.any():
            tensor.normal_(std=0.1)
    return model
