"""What an FP8 cache of vLLM needs is known and said before anything is built. None of this imports vLLM."""

import tomllib
from pathlib import Path

import pytest
from transformers import AutoConfig

from machine import with_fp8_instructions, without_fp8_instructions
from recipes_for_tests import TINY, command, merged, write_recipe
from steadyrl.consistency import check_kv_cache
from steadyrl.engine.base import EngineError
from steadyrl.engine.kv_cache import missing_instructions, no_fp8_cache, resolve_kv_precision
from steadyrl.plan import describe
from steadyrl.recipe import load, resolve
from steadyrl.recipe.shipped import find

WIDE = AutoConfig.for_model("qwen3", head_dim=32, hidden_size=64, num_attention_heads=2)
NARROW = AutoConfig.for_model("qwen3", head_dim=16, hidden_size=64, num_attention_heads=4)
LATENT = AutoConfig.for_model("deepseek_v3")
MODEL = {"config": TINY["model"]["config"] | {"head_dim": 32}}
RECIPE = find("demo-vllm")


@pytest.mark.parametrize(("amx", "avx512"), [(True, False), (False, True), (True, True)])
def test_either_instruction_set_is_enough(monkeypatch, amx: bool, avx512: bool) -> None:
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr("torch.cpu._is_avx512_supported", lambda: avx512)
    assert missing_instructions() is None
    assert no_fp8_cache(WIDE, on_cpu=True) is None


def test_the_instructions_that_are_missing_are_named(monkeypatch) -> None:
    without_fp8_instructions(monkeypatch)
    assert missing_instructions() == "AVX-512 or AMX"
    assert "AVX-512 or AMX" in str(no_fp8_cache(None, on_cpu=True))
    assert no_fp8_cache(None, on_cpu=False) is None  # a GPU has its own


@pytest.mark.parametrize(
    ("config", "reason"),
    [(WIDE, None), (NARROW, "multiple of 32, not 16"), (LATENT, "multi-head latent attention")],
)
def test_what_a_model_may_lack(monkeypatch, config, reason: str | None) -> None:
    with_fp8_instructions(monkeypatch)
    said = no_fp8_cache(config, on_cpu=True)
    assert said is None if reason is None else reason in str(said)
    assert resolve_kv_precision("auto", config, on_cpu=True) == ("fp8" if reason is None else "native")
    assert resolve_kv_precision("native", config, on_cpu=True) == "native"
    if reason is not None:
        with pytest.raises(EngineError, match=r'engine\.kv_precision = "fp8": .*Use "auto" or "native"'):
            resolve_kv_precision("fp8", config, on_cpu=True)


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_an_fp8_cache_asked_for_by_name_is_refused_before_anything_is_built(
    tmp_path, monkeypatch, capsys, more: tuple[str, ...]
) -> None:
    without_fp8_instructions(monkeypatch)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("steadyrl.parts.build_policy", lambda recipe: pytest.fail("a model was built"))
    monkeypatch.setattr("steadyrl.plan.skeleton", lambda *args, **more: pytest.fail("a model was built"))
    recipe = write_recipe(tmp_path, engine={"kind": "vllm", "kv_precision": "fp8"}, model=MODEL)
    assert command("train", recipe, "--run", tmp_path / "run", *more) == 2
    said = capsys.readouterr().err
    assert 'engine.kv_precision = "fp8": vLLM\'s FP8 cache needs a CPU with AVX-512 or AMX' in said
    assert 'Use "auto" or "native"' in said
    assert "cache_gib" not in said
    assert not (tmp_path / "run").exists()


def plan(**engine) -> str:
    return describe(
        resolve(merged(TINY, {"model": MODEL, "engine": {"kind": "vllm"} | engine}), source="test"), run=Path("runs/x")
    )


def test_the_plan_says_what_auto_takes(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with monkeypatch.context() as without:
        without_fp8_instructions(without)
        assert "cache auto, which takes native: vLLM's FP8 cache needs a CPU with AVX-512 or AMX" in plan(
            kv_precision="auto"
        )
    with_fp8_instructions(monkeypatch)
    assert "cache auto, which takes fp8\n" in plan(kv_precision="auto")
    assert "cache fp8\n" in plan(kv_precision="fp8")
    assert "cache native\n" in plan()


def test_the_embedded_engine_emulates_fp8_on_any_cpu(monkeypatch) -> None:
    without_fp8_instructions(monkeypatch)
    recipe = resolve(merged(TINY, {"engine": {"kv_precision": "fp8"}}), source="test")
    assert check_kv_cache(recipe) == ("fp8", None)


def test_the_recipe_for_vllm_runs_on_every_cpu(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert tomllib.loads(RECIPE.read_text())["engine"]["kv_precision"] == "auto"
    without_fp8_instructions(monkeypatch)
    assert "takes native" in describe(load(RECIPE), run=Path("runs/x"))
