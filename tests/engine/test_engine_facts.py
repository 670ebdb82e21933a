"""What is in force is written down beside the run."""

import json

import pytest

from builders import tiny_policy
from recipes_for_tests import train
from steadyrl.engine.local import LocalEngine

FP8 = "fp8 (e4m3), emulated"


def test_a_run_says_what_sampled(tmp_path) -> None:
    run = train(tmp_path, steps=1, evaluate={"every": 0, "prompts": 4})
    facts = json.loads((run / "engine.json").read_text())
    assert (facts["engine"], facts["device"], facts["dtype"]) == ("local", "cpu", "float32")
    assert (facts["weights"], facts["activations"], facts["kv_cache"]) == (FP8, FP8, "native")


@pytest.mark.parametrize(("options", "expected"), [({}, "native"), ({"kv_precision": "fp8"}, FP8)])
def test_the_cache_is_named(options: dict, expected: str) -> None:
    facts = LocalEngine(tiny_policy().model, end_tokens=set(), **options).facts
    assert (facts["weights"], facts["kv_cache"]) == ("native", expected)
