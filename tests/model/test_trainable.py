"""A model of which a part cannot be trained is refused by name, before any weight is loaded where a config tells."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from builders import dense_policy
from recipes_for_tests import command, write_recipe
from steadyrl.model.loading import ModelError, _policy, config_of, load_pretrained, skeleton
from steadyrl.model.trainable import left_out

METHODS = {
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "mxfp4": {"quant_method": "mxfp4"},
    "no method named": {"bits": 4},
}


def folder_of(path: Path, **config) -> Path:
    policy = dense_policy()
    policy.model.save_pretrained(path)
    policy.tokenizer.save_pretrained(path)
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return path


@pytest.mark.parametrize("field", ["quantization_config", "compression_config"])
@pytest.mark.parametrize("method", METHODS)
def test_quantised_weights_are_refused_by_their_config(tmp_path, method: str, field: str) -> None:
    folder = folder_of(tmp_path, **{field: METHODS[method]})
    for load in (
        lambda: load_pretrained(folder, dtype=torch.float32),
        lambda: config_of(str(folder), revision=None, trust_remote_code=False),
    ):
        with pytest.raises(ModelError, match=rf"is quantised \({field}: {method}\).*Give the unquantised model"):
            load()


def test_a_quantised_text_part_is_refused_too(tmp_path) -> None:
    text = {"vocab_size": 48, "hidden_size": 32, "num_hidden_layers": 1} | {"quantization_config": METHODS["gptq"]}
    AutoConfig.for_model("gemma3", text_config=text).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is quantised"):
        config_of(str(tmp_path), revision=None, trust_remote_code=False)


@pytest.mark.parametrize("complete", [True, False])
def test_an_adapter_is_refused_also_beside_a_whole_model(tmp_path, complete: bool) -> None:
    if complete:
        folder_of(tmp_path)
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "somewhere", "r": 4, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(ModelError, match=r"holds an adapter.*Merge it into its base model first"):
        load_pretrained(tmp_path, dtype=torch.float32)


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
@pytest.mark.parametrize("kind", ["adapter", "quantised"])
def test_it_is_one_sentence_and_exit_2(tmp_path, capsys, kind: str, more: tuple[str, ...]) -> None:
    folder = folder_of(tmp_path / "model", **({"quantization_config": METHODS["awq"]} if kind == "quantised" else {}))
    if kind == "adapter":
        (folder / "adapter_config.json").write_text("{}")
    recipe = write_recipe(tmp_path, update={"replay": "none"})
    tree = json.loads(recipe.read_text()) | {"model": {"kind": "pretrained", "path": str(folder)}}
    recipe.write_text(json.dumps(tree))
    capsys.readouterr()
    assert command("train", recipe, "--run", tmp_path / "run", *more) == 2
    said = capsys.readouterr().err
    assert kind in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_one_frozen_weight_is_named() -> None:
    policy = dense_policy()
    policy.model.model.norm.weight.requires_grad_(False)
    with pytest.raises(ModelError, match=r"has 1 frozen weights \(first: 'model\.norm\.weight'\)"):
        _policy(policy.model, policy.tokenizer)


def test_a_family_that_freezes_a_weight_is_refused_without_weights_too(monkeypatch) -> None:
    def freezing(config, **options):
        model = build(config, **options)
        model.lm_head.weight.requires_grad_(False)
        return model

    build = AutoModelForCausalLM.from_config
    monkeypatch.setattr(AutoModelForCausalLM, "from_config", freezing)
    with pytest.raises(ModelError, match=r"frozen weights \(first: 'lm_head\.weight'\)"):
        skeleton_of(AutoConfig.for_model("qwen3", vocab_size=48, hidden_size=32, num_hidden_layers=1))


def skeleton_of(config):
    return skeleton(config, trust_remote_code=False)


def test_a_vision_tower_that_is_left_out_is_named() -> None:
    text = {"vocab_size": 48, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "head_dim": 8}
    text |= {"num_key_value_heads": 2, "intermediate_size": 48, "layer_types": ["full_attention"]}
    whole = AutoConfig.for_model("qwen3_5", text_config=text)
    said = left_out(whole, skeleton_of(whole))
    assert said is not None
    assert "only its text model Qwen3_5ForCausalLM is loaded: the weights of vision are left out" in said
    assert left_out(whole.get_text_config(), skeleton_of(whole.get_text_config())) is None
    assert left_out(dense_policy().model.config, dense_policy().model) is None
