from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from builders import MOE, SMALL, tiny_policy
from steadyrl.cli import main
from steadyrl.conformance import report
from steadyrl.conformance.checks import CHECKS, CheckFailed
from steadyrl.conformance.families import EXPERTS
from steadyrl.conformance.report import subject_of
from steadyrl.model.loading import build_tiny


def saved_config(folder: Path, family: str, **fields) -> str:
    AutoConfig.for_model(family, **fields).save_pretrained(folder)
    return str(folder)


def test_a_family_that_conforms(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "--model", "mixtral"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "mixtral: conforms"
    assert [line.split()[0] for line in lines[1:]] == ["✓"] * len(CHECKS)


def test_a_broken_promise_is_shown_and_sets_the_exit_status(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(subject: object) -> None:
        raise CheckFailed("position 3 has another expert")

    monkeypatch.setitem(report.CHECKS, "sentinel", breaks)
    assert main(["conformance", "--model", "mixtral"]) == 1
    shown = capsys.readouterr().out
    assert shown.startswith("mixtral: does not conform\n")
    assert "FAILS  sentinel         position 3 has another expert" in shown


def test_a_refused_model_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "--model", "qwen3"]) == 1
    assert "qwen3: refused. Qwen3ForCausalLM is dense" in capsys.readouterr().out


def test_a_saved_config_is_built_small_and_keeps_its_way_of_choosing(tmp_path: Path) -> None:
    path = saved_config(tmp_path, "deepseek_v3", n_group=1, topk_group=1, routed_scaling_factor=3.5)
    config = subject_of(path, weights=False).config
    assert (config.n_group, config.topk_group, config.routed_scaling_factor) == (1, 1, 3.5)
    assert (config.hidden_size, config.n_routed_experts, config.num_experts_per_tok) == (32, EXPERTS, 2)


def test_a_saved_config_that_gives_its_router_no_gradient(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved_config(tmp_path, "qwen3_moe", num_experts_per_tok=1, norm_topk_prob=True)
    assert main(["conformance", "--model", path]) == 1
    assert "it chooses one expert and renormalises" in capsys.readouterr().out


def test_a_saved_model_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = tiny_policy(num_experts=6)
    policy.model.save_pretrained(tmp_path)
    assert subject_of(str(tmp_path), weights=True).build().config.num_experts == 6
    assert main(["conformance", "--model", str(tmp_path), "--weights"]) == 0
    assert "uint16           the number of its experts is its own" in capsys.readouterr().out


def test_a_saved_model_with_the_smallest_of_alphabets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def saved(alphabet: str) -> str:
        config = SMALL | MOE | {"num_experts": 6}
        policy = build_tiny(family="qwen3_moe", alphabet=alphabet, config=config, seed=0, dtype=torch.float32)
        policy.model.save_pretrained(tmp_path / alphabet)
        return str(tmp_path / alphabet)

    assert main(["conformance", "--model", saved("123456789"), "--weights"]) == 0  # and padding, end, unknown
    capsys.readouterr()
    assert main(["conformance", "--model", saved("12345678"), "--weights"]) == 2
    assert "has fewer tokens than the 12 that the checks use" in capsys.readouterr().err
    weights = tmp_path / "123456789" / "model.safetensors"
    kept = load_file(weights)
    del kept["model.norm.weight"]
    save_file(kept, weights, metadata={"format": "pt"})
    assert main(["conformance", "--model", str(weights.parent), "--weights"]) == 2
    assert "is missing 1 weights of Qwen3MoeForCausalLM (first: 'model.norm.weight')" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "qwen3_moe", "--weights"], "--weights needs a saved model; 'qwen3_moe' is the name of a family"),
        (["--model", "/no/such/folder"], "'/no/such/folder' cannot be loaded"),
    ],
)
def test_what_cannot_be_examined(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", *arguments]) == 2
    assert message in capsys.readouterr().err
