import pytest
import torch
from torch import Tensor

from steadyrl.model import logprobs
from steadyrl.model.logprobs import Head, token_logprobs

VOCABULARY, HIDDEN = 37, 8
TARGETS = torch.tensor([0, 9, 10, 19, 20, 35, 36])  # the edges of blocks of 10, too
HEADS = {
    "plain": {},
    "scale": {"scale": 0.25},
    "softcap": {"softcap": 3.0},
    "both": {"scale": 2.0, "softcap": 3.0},
}


def tensors(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (len(TARGETS), HIDDEN), (VOCABULARY, HIDDEN), (VOCABULARY,), (len(TARGETS),)
    hidden, weight, bias, upstream = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), upstream


def plainly(hidden: Tensor, weight: Tensor, bias: Tensor | None, *, temperature: float, scale=1.0, softcap=None):
    """What the docstring says, by autograd in float64."""
    z = hidden.double() @ weight.double().T
    z = (z if bias is None else z + bias.double()) * scale
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    everything = torch.log_softmax(z / temperature, dim=-1)
    chosen = everything[torch.arange(len(TARGETS)), TARGETS]
    return chosen, -(everything.exp() * everything).sum(dim=-1)


@pytest.fixture(params=[8 * 2**20, 4 * len(TARGETS) * 10, 1], ids=["one block", "blocks of 10", "blocks of 1"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "BLOCK_BYTES", request.param)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS)
def test_values_entropy_and_gradients(options: dict, with_bias: bool, temperature: float) -> None:
    hidden, weight, bias, upstream = tensors()
    leaves = (hidden, weight, bias) if with_bias else (hidden, weight)
    head = Head(weight=weight, bias=bias if with_bias else None, **options)
    ours, entropy = token_logprobs(hidden, head, TARGETS, temperature=temperature)
    gradients = torch.autograd.grad((ours * upstream).sum(), leaves)

    expected, expected_entropy = plainly(hidden, weight, head.bias, temperature=temperature, **options)
    expected_gradients = torch.autograd.grad((expected * upstream).sum(), leaves)

    torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy.double(), expected_entropy, atol=1e-5, rtol=1e-5)
    for mine, plain in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(mine, plain, atol=1e-5, rtol=1e-4)
    assert not entropy.requires_grad


def test_blocks_are_as_small_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    _, weight, _, _ = tensors()
    monkeypatch.setattr(logprobs, "BLOCK_BYTES", 4 * len(TARGETS) * 10)
    blocks = list(logprobs._blocks(Head(weight=weight), TARGETS))
    assert [len(head.weight) for head, _, _ in blocks] == [10, 10, 10, 7]
    assert [here.sum().item() for _, here, _ in blocks] == [2, 2, 1, 2]  # 0 9 | 10 19 | 20 | 35 36


@pytest.mark.usefixtures("_blocks")
def test_bfloat16_stays_near_its_own_logits() -> None:
    hidden, weight, bias, upstream = tensors(torch.bfloat16)
    head = Head(weight=weight, bias=bias)
    ours, entropy = token_logprobs(hidden, head, TARGETS, temperature=0.7)
    everything = torch.log_softmax(head.logits(hidden) / 0.7, dim=-1)
    torch.testing.assert_close(ours, everything[torch.arange(len(TARGETS)), TARGETS])
    torch.testing.assert_close(entropy, -(everything.exp() * everything).sum(dim=-1))
    assert ours.dtype == entropy.dtype == torch.float32

    gradients = torch.autograd.grad((ours * upstream).sum(), (hidden, weight, bias))
    plain, _ = plainly(hidden, weight, bias, temperature=0.7)
    for mine, exact in zip(
        gradients, torch.autograd.grad((plain * upstream).sum(), (hidden, weight, bias)), strict=True
    ):
        assert mine.dtype == torch.bfloat16
        assert (mine - exact).norm() < 0.02 * exact.norm()


def test_huge_logits_do_not_overflow() -> None:
    hidden, weight, _, _ = tensors()
    ours, entropy = token_logprobs(hidden * 1e4, Head(weight=weight), TARGETS, temperature=1.0)
    assert ours.isfinite().all()
    assert entropy.isfinite().all()
    assert (entropy >= -1e-2).all()


def test_frozen_head() -> None:
    hidden, weight, _, upstream = tensors()
    ours, _ = token_logprobs(hidden, Head(weight=weight.detach()), TARGETS, temperature=1.0)
    (ours * upstream).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None
