import json

import pytest
import torch
from torch import nn

from recipes_for_tests import TINY, merged, train
from steadyrl.conformance.families import build, named_config
from steadyrl.model import attention
from steadyrl.model.attention import (
    _single_query,
    attend_by_block,
    attends_by_block,
    describe_rows,
    may_attend_by_block,
)
from steadyrl.model.loading import skeleton
from steadyrl.plan import describe
from steadyrl.recipe import resolve


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_a_single_query(masked: bool, scaling: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, heads, n, 8, generator=generator) for heads, n in ((6, 1), (2, 5), (2, 5)))
    mask = torch.arange(5) >= torch.tensor([0, 2, 4])[:, None, None, None] if masked else None
    ours = _single_query(query, key, value, mask, scaling)
    shared = (x.repeat_interleave(3, dim=1) for x in (key, value))  # six heads of queries to two of keys
    expected = nn.functional.scaled_dot_product_attention(query, *shared, attn_mask=mask, scale=scaling)
    torch.testing.assert_close(ours, expected.transpose(1, 2))


@pytest.mark.parametrize(
    ("family", "packed"),
    [
        ("qwen3_moe", True),
        ("phimoe", True),
        ("deepseek_v2", True),  # keys and values of different width
        ("gpt_oss", False),  # attention of its own
        ("qwen3_next", False),  # a recurrent state
        ("afmoe", False),  # a sliding window
        ("doge", False),  # says that it qualifies, and computes with the mask
    ],
)
def test_who_takes_packed_rows(family: str, packed: bool) -> None:
    model = build(named_config(family)).eval()
    attend_by_block(model)
    assert attends_by_block(model) == packed


def test_a_model_that_mixes_the_sequences_of_a_row_is_left_as_it_is(monkeypatch) -> None:
    def mixed(query, key, value, scaling, packed):
        return nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True).transpose(
            1, 2
        )

    monkeypatch.setattr(attention, "_blockwise", mixed)
    model = build(named_config("qwen3_moe")).eval()
    attend_by_block(model)
    assert not attends_by_block(model)
    assert model.config._attn_implementation == "sdpa"


def test_a_lack_of_memory_does_not_choose_how_a_model_trains(monkeypatch) -> None:
    def exhausted(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(attention, "_blockwise", exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        attend_by_block(build(named_config("qwen3_moe")).eval())


def test_an_error_that_has_nothing_to_do_with_the_mask_surfaces(monkeypatch) -> None:
    def broken(*args):
        raise RuntimeError("a kernel failed")

    monkeypatch.setattr(attention, "_blockwise", broken)
    with pytest.raises(RuntimeError, match="a kernel failed"):
        attend_by_block(build(named_config("qwen3_moe")).eval())


@pytest.mark.parametrize(("family", "packed"), [("qwen3_moe", True), ("gpt_oss", False)])
def test_how_a_model_trains_is_said_without_its_weights(family: str, packed: bool) -> None:
    shapes = skeleton(named_config(family), trust_remote_code=False)
    assert may_attend_by_block(shapes) == packed
    assert describe_rows(packed).startswith("packed rows" if packed else "a row for each sequence")


@pytest.mark.parametrize(("window", "says"), [({}, "packed rows"), ({"use_sliding_window": True}, "a row for each")])
def test_plan_and_run_say_how_the_model_trains(tmp_path, window: dict, says: str) -> None:
    more = {"sliding_window": 8} | window if window else {}
    model = {"config": TINY["model"]["config"] | more}
    recipe = resolve(merged(TINY, {"model": model}), source="test")
    assert f"forward    {says}" in describe(recipe, run=tmp_path / "planned")
    run = train(tmp_path, model=model, steps=1, evaluate={"every": 0, "prompts": 4})
    assert json.loads((run / "engine.json").read_text())["training_forward"].startswith(says)
