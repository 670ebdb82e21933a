"""The share of the weights that an update changed, counted by hand."""

import pytest
import torch
from torch import nn

from recipes_for_tests import coin_questions, train
from steadyrl.model.moved import SAMPLE, Moved, moved_since, sampled
from steadyrl.run.logs import read_jsonl


def linear(size: int, dtype: torch.dtype = torch.float32) -> nn.Linear:
    return nn.Linear(size, 1, bias=False).to(dtype)


def test_weights_with_a_gradient_that_changed() -> None:
    model = linear(4)
    model.weight.grad = torch.tensor([[1.0, 0.0, -2.0, 3.0]])
    before = sampled(model)
    with torch.no_grad():
        model.weight += torch.tensor([[0.5, 0.5, 0.5, 0.0]])  # the second moved without a gradient, as by its momentum
    assert moved_since(before, model) == Moved(pulled=3, changed=2)


def test_nothing_has_a_gradient() -> None:
    model = linear(4)
    assert moved_since(sampled(model), model) == Moved(pulled=0, changed=0)


def test_a_large_tensor_is_sampled_in_every_column() -> None:
    model = nn.Linear(256, 4 * SAMPLE // 256, bias=False)
    model.weight.grad = torch.zeros_like(model.weight)
    model.weight.grad[:, ::2] = 1.0
    before = sampled(model)
    assert before.numel() <= SAMPLE
    with torch.no_grad():
        model.weight[:, ::4] += 1.0
    found = moved_since(before, model)
    assert found.pulled / before.numel() == pytest.approx(0.5, abs=0.01)
    assert found.changed / found.pulled == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 1.0), (torch.bfloat16, 0.0)])
def test_a_step_of_a_millionth_moves_float32_alone(dtype: torch.dtype, share: float) -> None:
    model = linear(64, dtype)
    torch.nn.init.constant_(model.weight, 0.5)
    model.weight.grad = torch.ones_like(model.weight)
    before = sampled(model)
    torch.optim.SGD(model.parameters(), lr=1e-6).step()
    found = moved_since(before, model)
    assert found.changed / found.pulled == share


@pytest.mark.parametrize(
    ("dtype", "rate", "said"), [("bfloat16", 1e-6, True), ("float32", 1e-6, False), ("bfloat16", 1e-2, False)]
)
def test_a_run_says_once_that_its_updates_are_lost(tmp_path, capsys, dtype: str, rate: float, said: bool) -> None:
    changes = {
        "runtime": {"dtype": dtype},
        "optimizer": {"learning_rate": rate},
        "evaluate": {"every": 0, "prompts": 4},
    }
    run = train(tmp_path, task=coin_questions(tmp_path), steps=2, **changes)
    shares = [row["update/moved"] for row in read_jsonl(run / "metrics.jsonl")]
    assert all(share < 0.1 if said else share > 0.5 for share in shares)
    assert capsys.readouterr().err.count("of the weights that have a gradient (update/moved)") == int(said)
