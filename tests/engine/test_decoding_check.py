"""The embedded engine is held against the model's forward when it is built: right, or refused by name."""

import json
import time
from unittest.mock import patch

import pytest
import torch
from transformers import AutoConfig

from builders import tiny_policy
from recipes_for_tests import command, write_recipe
from steadyrl.conformance.families import build
from steadyrl.engine import wave
from steadyrl.engine.base import EngineError, generate
from steadyrl.engine.local import LocalEngine
from steadyrl.model.decoding import rope_length
from steadyrl.types import Sampling

SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
STATE = {"vocab_size": 48, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
OTHER = "to log-probabilities that differ from its forward"
REFUSED = {
    "mamba": (STATE, f"decodes MambaForCausalLM {OTHER}"),
    "falcon_mamba": (STATE, f"decodes FalconMambaForCausalLM {OTHER}"),
    "rwkv": (
        {"vocab_size": 48, "hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2},
        f"decodes RwkvForCausalLM {OTHER}",
    ),
    "recurrent_gemma": (
        {"vocab_size": 48, "hidden_size": 32, "lru_width": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
        | {"intermediate_size": 48},
        "RecurrentGemmaForCausalLM",
    ),
    "minimax": (
        SIZES | {"num_local_experts": 4, "layer_types": ["linear_attention", "full_attention"], "block_size": 8},
        "cannot decode MiniMaxForCausalLM: ValueError: MiniMax uses cache of its own",
    ),
    "xlstm": ({"vocab_size": 48, "hidden_size": 32, "num_heads": 4, "num_hidden_layers": 2}, "xLSTMForCausalLM"),
    "bert": (SIZES, f"decodes BertLMHeadModel {OTHER}"),
    "openai-gpt": ({"vocab_size": 48, "n_embd": 32, "n_layer": 2, "n_head": 4}, "cannot decode OpenAIGPTLMHeadModel"),
}
"""Families that the embedded engine cannot decode, and what it says."""
DECODED = {
    "mamba2": STATE | {"num_heads": 4, "head_dim": 16, "n_groups": 1, "expand": 2, "chunk_size": 8},
    "gemma2": SIZES | {"head_dim": 8, "sliding_window": 4},
    "gpt2": {"vocab_size": 48, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "bloom": {"vocab_size": 48, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "lfm2": SIZES | {"layer_types": ["conv", "full_attention"]},
    "llama": SIZES | {"max_position_embeddings": 2},
}
"""Layers and sizes of other kinds, which it decodes as their forward computes."""


def small(family: str, sizes: dict):
    return build(AutoConfig.for_model(family, **sizes)).eval()


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_cannot_be_decoded_is_refused_when_the_engine_is_built(family: str) -> None:
    sizes, message = REFUSED[family]
    with pytest.raises(EngineError, match=f"the embedded engine .*{message}") as refusal:
        LocalEngine(small(family, sizes), end_tokens={1})
    assert 'Use engine.kind = "vllm", or another model' in str(refusal.value)


@pytest.mark.parametrize("family", DECODED)
def test_a_family_that_is_decoded_right_is_taken(family: str) -> None:
    LocalEngine(small(family, DECODED[family]), end_tokens={1})


def moved_positions(wave) -> dict:
    step = wave.step

    def shifted(self, t):
        self._next = self._next + 1
        return step(self, t)

    return {"step": shifted}


def moved_routes(wave) -> dict:
    routes_of = wave._routes_of
    return {"_routes_of": lambda self, *place: routes_of(self, *place).roll(1, dims=0)}


def padding_that_is_attended_to(wave) -> dict:
    prefill = wave.prefill

    def unmasked(self):
        self._mask = torch.ones_like(self._mask)
        return prefill(self)

    return {"prefill": unmasked}


def rows_that_change_places_when_others_leave(wave) -> dict:
    take = wave._take
    return {"_take": lambda self, rows: take(self, rows.flip(0) if len(rows) == 3 else rows)}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (moved_positions, OTHER),
        (padding_that_is_attended_to, OTHER),
        (rows_that_change_places_when_others_leave, f"{OTHER}|differently after other sequences have ended"),
        (moved_routes, "with experts that its forward does not choose"),
    ],
)
def test_planted_faults_of_decoding_are_found(fault, words: str) -> None:
    model = tiny_policy(hidden_size=64, num_experts=16).model
    with (
        patch.multiple(wave.Wave, **fault(wave.Wave)),
        pytest.raises(EngineError, match=f"decodes Qwen3MoeForCausalLM .*({words})"),
    ):
        LocalEngine(model, end_tokens={1})
    LocalEngine(model, end_tokens={1})


def test_a_lack_of_memory_is_not_a_family_that_cannot_be_decoded() -> None:
    exhausted = torch.OutOfMemoryError("CUDA out of memory")
    with patch.object(wave.Wave, "prefill", side_effect=exhausted), pytest.raises(torch.OutOfMemoryError):
        LocalEngine(tiny_policy().model, end_tokens={1})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_check_is_cheap_and_takes_no_random_number(dtype: torch.dtype) -> None:
    model = tiny_policy(dtype=dtype, hidden_size=64, num_attention_heads=4, head_dim=16, moe_intermediate_size=64).model
    LocalEngine(model, end_tokens={1})  # once, for what torch prepares on its first call
    before, start = torch.get_rng_state(), time.perf_counter()
    LocalEngine(model, end_tokens={1}, precision="fp8", kv_precision="fp8")
    assert time.perf_counter() - start < 1.5  # 0.1 s where nothing else runs
    assert torch.equal(torch.get_rng_state(), before)


LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
PHI = SIZES | {"rope_parameters": LONG, "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    ("rope", "length"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, None),
        ({"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}, None),
        ({"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64}, None),
        ({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, 128),
        (LONG | {"original_max_position_embeddings": 24}, 24),
    ],
)
def test_the_length_to_which_a_rope_keeps_its_factors(rope: dict, length: int | None) -> None:
    assert rope_length(AutoConfig.for_model("llama", **SIZES, rope_parameters=rope)) == length


def test_the_length_where_kinds_of_layers_have_ropes_of_their_own() -> None:
    kinds = {
        "full_attention": LONG | {"original_max_position_embeddings": 24},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert rope_length(AutoConfig.for_model("gemma3_text", **SIZES, head_dim=8, rope_parameters=kinds)) == 24


def answer(engine: LocalEngine, *, new: int) -> list:
    sampling = Sampling(temperature=1.0, max_new_tokens=new)
    return generate(engine, [(3,) * 12], responses=2, sampling=sampling, seed=0)


@pytest.mark.parametrize("original", [8, 16])  # the first is shorter than what the check itself would decode
def test_a_response_that_can_cross_the_length_is_refused(original: int) -> None:
    engine = LocalEngine(small("phi3", PHI | {"original_max_position_embeddings": original}), end_tokens={1})
    if original == 16:
        assert answer(engine, new=4)
    with pytest.raises(EngineError, match=f"12 tokens; with max_new_tokens = 5 it can cross {original} tokens, where"):
        answer(engine, new=5)


def test_a_recipe_whose_responses_alone_cross_the_length_is_refused_in_the_plan(tmp_path, capsys) -> None:
    recipe = write_recipe(tmp_path, update={"replay": "none"}, rollout={"max_new_tokens": 16})
    fields = {name: value for name, value in PHI.items() if name != "vocab_size"}
    tree = json.loads(recipe.read_text()) | {"model": {"kind": "tiny", "family": "phi3", "config": fields}}
    recipe.write_text(json.dumps(tree))
    assert command("train", recipe, "--dry-run") == 2
    told = capsys.readouterr().err
    assert "with rollout.max_new_tokens = 16 it crosses 16 tokens, beyond which the model's rope changes" in told
