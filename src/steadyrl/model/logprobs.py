"""Log-probabilities of chosen tokens, and entropy, without ever holding the logits of all positions.

At a vocabulary of 151,936 the float32 logits of 8,192 positions are 5 GB, and autograd keeps several such tensors.
Here they are made a block of the vocabulary at a time, and again in the backward pass.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

BLOCK_BYTES = 8 * 2**20
"""Size of one block of float32 logits on a CPU: it stays in the caches."""
GPU_BLOCK_BYTES = 256 * 2**20
"""The same on a GPU, which small blocks do not keep busy."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """How a model turns its last hidden states into logits: z = cap·tanh((h Wᵀ + b)·scale / cap)."""

    weight: Float[Tensor, "vocabulary hidden"]
    """Weight of the output embedding."""
    bias: Float[Tensor, "vocabulary"] | None = None
    """Its bias, where it has one."""
    scale: float = 1.0
    """Factor on the logits."""
    softcap: float | None = None
    """Soft cap on the logits."""

    def logits(self, hidden: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens vocabulary"]:
        """Logits in float32; the matrix product runs in the model's own precision, as an inference engine's does."""
        logits = nn.functional.linear(hidden, self.weight, self.bias).float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def token_logprobs(
    hidden: Float[Tensor, "tokens hidden"],
    head: Head,
    targets: Int[Tensor, "tokens"],
    *,
    temperature: float,
) -> tuple[Float[Tensor, "tokens"], Float[Tensor, "tokens"]]:
    """log π(y_t) and the entropy −Σ_w π(w) log π(w), of the distribution at `temperature`, in float32.

    The log-probabilities have a gradient for `hidden` and the head. The entropy has none.

    Args:
        hidden: last hidden state at the positions that predict the targets.
        head: the model's output projection.
        targets: the tokens y_t.
        temperature: the logits are divided by it; it must be the one that sampled.
    """
    return _TokenLogprobs.apply(hidden, head.weight, head.bias, targets, head, temperature)


class _TokenLogprobs(torch.autograd.Function):
    """∂ log π(y)/∂z = (onehot(y) − π)/T, with π made again from the saved hidden states and log Σ exp.

    The blocks run over the vocabulary, not over the tokens, so that the weight and its gradient, the largest things
    in sight, are read and written once.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, head, temperature):
        shape = hidden.shape[:1]
        top = hidden.new_full(shape, -torch.inf, dtype=torch.float32)
        total, weighted, chosen = (torch.zeros_like(top) for _ in range(3))
        for block, here, local in _blocks(head, targets):
            z = block.logits(hidden).div_(temperature)
            chosen = torch.where(here, z.gather(1, local).squeeze(1), chosen)
            higher = torch.maximum(top, z.amax(dim=1))
            decay = (top - higher).exp()
            p = (z - higher[:, None]).exp_()
            total = total * decay + p.sum(dim=1)
            weighted = weighted * decay + torch.linalg.vecdot(p, z)
            top = higher
        normaliser = top + total.log()
        entropy = normaliser - weighted / total
        ctx.save_for_backward(hidden, weight, targets, normaliser)
        ctx.head, ctx.temperature = head, temperature
        ctx.mark_non_differentiable(entropy)
        return chosen - normaliser, entropy

    @staticmethod
    def backward(ctx, *grads):
        hidden, weight, targets, normaliser = ctx.saved_tensors
        head, temperature, upstream = ctx.head, ctx.temperature, grads[0]
        grad_hidden = torch.zeros_like(hidden, dtype=torch.float32)  # summed over blocks: bfloat16 would drift
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        grad_bias = torch.empty_like(head.bias) if ctx.needs_input_grad[2] else None
        start = 0
        for block, here, local in _blocks(head, targets):
            end = start + len(block.weight)
            capped = block.logits(hidden)
            grad = (capped / temperature).sub_(normaliser[:, None]).exp_().mul_(-upstream[:, None])
            grad.scatter_add_(1, local, (upstream * here)[:, None])
            if head.softcap is not None:
                grad.mul_(1.0 - (capped / head.softcap).square())
            grad = grad.mul_(head.scale / temperature).to(weight.dtype)
            grad_hidden += grad @ block.weight
            if grad_weight is not None:
                torch.mm(grad.T, hidden, out=grad_weight[start:end])
            if grad_bias is not None:
                torch.sum(grad, dim=0, out=grad_bias[start:end])
            start = end
        return grad_hidden.to(hidden.dtype), grad_weight, grad_bias, None, None, None


def _blocks(head: Head, targets: Tensor) -> Iterator[tuple[Head, Tensor, Tensor]]:
    """The head cut along the vocabulary, with the targets of each block and their place in it."""
    width = max(1, (GPU_BLOCK_BYTES if targets.is_cuda else BLOCK_BYTES) // (4 * max(1, len(targets))))
    bias = (None,) * -(-len(head.weight) // width) if head.bias is None else head.bias.split(width)
    start = 0
    for w, b in zip(head.weight.detach().split(width), bias, strict=True):
        local = targets - start
        here = (local >= 0) & (local < len(w))
        yield replace(head, weight=w, bias=b), here, local.clamp(0, len(w) - 1)[:, None]
        start += len(w)
