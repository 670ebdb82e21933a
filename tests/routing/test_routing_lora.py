"""Adapters of peft on attention, on the router and on the experts themselves."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from steadyrl.conformance.families import build, named_config
from steadyrl.routing import record, replay

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])
ADAPTERS = {
    "attention": {"target_modules": ["q_proj", "v_proj"]},
    "router": {"target_modules": ["q_proj", "gate"]},
    "experts": {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]},
}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapted_model_replays(adapter: str) -> None:
    model = build(named_config("qwen3_moe")).eval()
    plain = model(input_ids=IDS).logits.detach()
    adapted = get_peft_model(model, LoraConfig(r=4, init_lora_weights=False, **ADAPTERS[adapter])).eval()

    def forward() -> tuple[torch.Tensor, list[torch.Tensor]]:
        adapted.zero_grad()
        logits = adapted(input_ids=IDS).logits
        logits[..., 4].sum().backward()
        return logits.detach(), [p.grad.clone() for p in adapted.parameters() if p.grad is not None]

    with record(adapted.base_model.model) as recorder:
        natural, gradients = forward()
        routes = recorder.routes()
    assert not torch.equal(natural, plain)
    with replay(adapted.base_model.model, routes):
        replayed, again = forward()
    assert torch.equal(replayed, natural)
    assert all(torch.equal(a, b) for a, b in zip(again, gradients, strict=True))
    foreign = ((routes.int() + 1) % 8).to(routes.dtype)
    with replay(adapted.base_model.model, foreign) as recorder:
        other, _ = forward()
        assert not torch.equal(recorder.routes(), foreign)
    assert not torch.allclose(other, natural)
