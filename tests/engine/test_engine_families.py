"""Families whose experts or routers are out of the ordinary, through the embedded engine."""

import pytest
import torch

from steadyrl.conformance.families import build, named_config
from steadyrl.engine.base import EngineError, generate
from steadyrl.engine.local import LocalEngine
from steadyrl.routing import replay
from steadyrl.types import Sampling


@pytest.mark.parametrize("family", ["longcat_flash", "dbrx", "phimoe", "deepseek_v2 (group-limited)"])
def test_routes_of_the_engine_are_the_trainers(family: str) -> None:
    model = build(named_config(family))
    engine = LocalEngine(model, end_tokens=set())
    (completion,), *_ = generate(
        engine, [(3, 4, 5)], responses=1, sampling=Sampling(temperature=1.0, max_new_tokens=4), seed=0
    )
    assert completion.routes is not None
    assert len(completion.routes) == 3 + 4 - 1
    fed = torch.tensor([(3, 4, 5, *completion.token_ids[:-1])])
    with replay(model, completion.routes) as watched, torch.no_grad():
        logits = model(input_ids=fed, use_cache=False).logits[0, 2:]
    assert torch.equal(watched.routes().sort(dim=-1).values, completion.routes.sort(dim=-1).values)
    taken = logits.log_softmax(dim=-1).gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0]
    torch.testing.assert_close(taken, completion.logprobs, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", ["llama4_text", "longcat_flash", "dbrx"])
def test_experts_of_an_unknown_layout_are_not_passed_over_in_fp8(family: str) -> None:
    with pytest.raises(EngineError, match=r"engine.precision: how \w+Experts stores its experts is not known"):
        LocalEngine(build(named_config(family)), end_tokens=set(), precision="fp8")
