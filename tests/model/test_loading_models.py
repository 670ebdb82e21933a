import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING
from transformers.modeling_layers import GradientCheckpointingLayer

from builders import ALPHABET, FAMILIES, SMALL, dense_policy, family_policy, tiny_policy
from steadyrl.conformance.families import build, named_config
from steadyrl.model.loading import (
    ModelError,
    _policy,
    build_tiny,
    config_of,
    decoder_of,
    head_of,
    load_pretrained,
    recompute_activations,
    skeleton,
)
from steadyrl.run import checkpoint

IDS = torch.tensor([[5, 9, 20, 11]])


def tiny(family: str, alphabet: str = ALPHABET, **config):
    return build_tiny(family=family, alphabet=alphabet, config=SMALL | config, seed=0, dtype=torch.float32)


def test_weights_are_a_function_of_the_seed() -> None:
    one, same, other = (tiny_policy(seed).model.state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_a_skeleton_has_the_shapes_and_no_weights() -> None:
    model = tiny_policy().model
    shapes = {
        name: p.shape for name, p in skeleton(model.config, trust_remote_code=False).named_parameters() if p.is_meta
    }
    assert shapes == {name: p.shape for name, p in model.named_parameters()}


def test_every_character_is_one_token_and_comes_back() -> None:
    tokenizer = dense_policy().tokenizer
    ids = tokenizer(ALPHABET)["input_ids"]
    assert ids == list(range(3, 3 + len(ALPHABET)))  # after padding, end and unknown
    assert tokenizer.decode(ids) == ALPHABET
    assert tokenizer("1é 2")["input_ids"] == [4, tokenizer.unk_token_id, 3 + ALPHABET.index(" "), 5]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert dense_policy().model.config.vocab_size == len(tokenizer) == 3 + len(ALPHABET)


@pytest.mark.parametrize("build", [tiny_policy, dense_policy])
def test_saved_and_loaded_is_the_same(build, tmp_path: Path) -> None:
    policy = build()
    policy.model.save_pretrained(tmp_path)
    policy.tokenizer.save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(loaded.model(IDS).logits, policy.model(IDS).logits)
    assert loaded.tokenizer("7+8=")["input_ids"] == policy.tokenizer("7+8=")["input_ids"]
    assert loaded.model.config.max_position_embeddings == policy.model.config.max_position_embeddings == 128
    assert load_pretrained(tmp_path, dtype=torch.bfloat16).model.dtype == torch.bfloat16
    assert config_of(str(tmp_path), revision=None, trust_remote_code=False).hidden_size == 32


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.path = .*nowhere.* cannot be loaded"):
        load_pretrained(tmp_path / "nowhere", dtype=torch.float32)
    with pytest.raises(ModelError, match=r"model\.path = .*nowhere.* cannot be loaded"):
        config_of(str(tmp_path / "nowhere"), revision=None, trust_remote_code=False)
    dense_policy().model.save_pretrained(tmp_path)  # no tokenizer beside it
    with pytest.raises(ModelError, match="holds no tokenizer; save it beside the weights"):
        load_pretrained(tmp_path, dtype=torch.float32)


def saved(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A dense model whose weights were changed on the disk."""
    policy = dense_policy()
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_weight_that_is_missing_is_not_drawn_at_random(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    with pytest.raises(ModelError, match=rf"is missing 1 weights of Qwen3ForCausalLM \(first: '{name}'\)"):
        load_pretrained(saved(tmp_path, lambda weights: weights.pop(name)), dtype=torch.float32)


def test_a_weight_of_another_shape_is_refused(tmp_path: Path) -> None:
    def halve(weights: dict[str, torch.Tensor]) -> None:
        weights["model.norm.weight"] = weights["model.norm.weight"][:16].clone()

    with pytest.raises(ModelError, match=r"cannot be loaded"):
        load_pretrained(saved(tmp_path, halve), dtype=torch.float32)


def test_defaults_for_generation_that_contradict_themselves_do_not_stop_a_checkpoint(tmp_path: Path) -> None:
    folder = saved(tmp_path, lambda weights: None)
    (folder / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.6, "eos_token_id": [1, 7]}')
    policy = load_pretrained(folder, dtype=torch.float32)
    checkpoint.save(tmp_path / "step-000000", policy, torch.optim.AdamW(policy.model.parameters()), {"step": 0})
    again = load_pretrained(tmp_path / "step-000000" / "model", dtype=torch.float32)
    assert again.model.generation_config is not None
    assert again.model.generation_config.eos_token_id == [1, 7]


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    policy = dense_policy()
    policy.model.save_pretrained(tmp_path)
    policy.tokenizer.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"model\.path"):
        load_pretrained(tmp_path, dtype=torch.float32)


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        ("qwen3", {"hiden_size": 32}, r"\['hiden_size'\], which the configuration of qwen3 does not know"),
        ("qwen3", {"num_experts": 8}, "num_experts"),
        ("qwen33", {}, "qwen33"),
    ],
)
def test_a_wrong_config_is_named(family: str, config: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        tiny(family, **config)


def test_a_character_twice_is_named() -> None:
    with pytest.raises(ModelError, match=r"model\.alphabet has \['a'\] more than once"):
        tiny("qwen3", alphabet="abca")


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("qwen3", {}),
        ("qwen3", {"tie_word_embeddings": True}),
        ("granitemoe", {"num_local_experts": 8, "num_experts_per_tok": 2, "logits_scaling": 4.0}),
        ("cohere", {"logit_scale": 0.25}),
        ("gemma2", {"final_logit_softcapping": 3.0}),
        ("phi", {}),  # a head with a bias
    ],
)
def test_the_head_is_the_models_own(family: str, config: dict) -> None:
    model = tiny(family, **config).model
    if (bias := getattr(model.lm_head, "bias", None)) is not None:
        torch.nn.init.normal_(bias)
    own = model(input_ids=IDS, use_cache=False).logits
    hidden = model.base_model(input_ids=IDS, use_cache=False).last_hidden_state
    torch.testing.assert_close(head_of(model).logits(hidden), own)
    plain = hidden @ model.get_output_embeddings().weight.T
    assert torch.allclose(plain, own, atol=1e-4) == (family == "qwen3")  # the others do change their logits


def test_a_head_that_is_not_known_is_refused() -> None:
    policy = dense_policy()
    policy.model.lm_head.register_forward_hook(lambda module, args, logits: logits * 1.5)
    with pytest.raises(ModelError, match="Qwen3ForCausalLM changes its logits after the output embedding"):
        _policy(policy.model, policy.tokenizer)


@pytest.mark.parametrize("family", FAMILIES)
def test_recurrent_and_windowed_layers_take_one_block_at_a_time(family: str) -> None:
    assert family_policy(family).one_block == (family in {"qwen3_next", "gpt_oss"})


def test_a_sliding_window_takes_one_block_at_a_time() -> None:
    assert not dense_policy().one_block
    assert dense_policy(use_sliding_window=True, sliding_window=4, max_window_layers=1).one_block


def test_the_decoder_of_a_family_whose_prefix_names_the_causal_model() -> None:
    model = build(named_config("llama4_text"))
    assert model.base_model is model
    assert decoder_of(model) is model.model


def test_recomputation_leaves_dropout_and_jitter_off() -> None:
    model = build(named_config("phimoe")).eval()
    recompute_activations(model)
    training = [type(module).__name__ for module in model.modules() if module.training]
    assert training
    assert set(training) == {"PhimoeDecoderLayer"}


def test_recomputation_leaves_the_dropout_of_the_layers_themselves_off() -> None:
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_attention_heads": 4, "vocab_size": 48}
    config = CONFIG_MAPPING["opt"](num_hidden_layers=2, max_position_embeddings=32, dropout=0.5, **sizes)
    model = build(config).eval()
    own = model(IDS).logits
    own.sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    recompute_activations(model)
    copied = copy.deepcopy(model).eval()
    again = model(IDS, use_cache=False).logits  # the layers' forward asks whether they are being trained
    again.sum().backward()
    assert torch.equal(again, own)
    assert all(torch.equal(p.grad, gradients[name]) for name, p in model.named_parameters() if p.grad is not None)
    assert all(layer.training for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer))
    copied(IDS)
    assert not any(module.training for module in copied.modules())  # an engine's copy stays as it was
