"""Log-probabilities and entropy at a vocabulary of 151,936: in blocks, against materialising the logits.

Time of forward and backward, alternating; peak memory of each in a process of its own, above what its inputs take.
"""

import statistics
import subprocess
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from _measure import QUICK, alternate, arguments, median_ratio, peak_gib, show, sized
from steadyrl.model.logprobs import Head, token_logprobs

VOCABULARY, TOKENS, ROUNDS = sized(151_936, 8192), sized(1024, 64), sized(3, 1)


def inputs(width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, output embedding and targets."""
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, width, requires_grad=True)
    weight = (torch.randn(VOCABULARY, width) * width**-0.5).requires_grad_()
    return hidden, weight, torch.randint(VOCABULARY, (TOKENS,))


def in_blocks(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Ours."""
    return token_logprobs(hidden, Head(weight=weight), targets, temperature=1.0)


def materialised(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The textbook way: all logits, a log-softmax, an entropy that carries no gradient."""
    logprobs = torch.log_softmax(hidden @ weight.T, dim=-1)
    with torch.no_grad():
        entropy = -(logprobs.exp() * logprobs).sum(dim=-1)
    return logprobs.gather(1, targets[:, None]).squeeze(1), entropy


WAYS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"in blocks": in_blocks, "materialised": materialised}


def step(way: str, tensors: tuple[Tensor, Tensor, Tensor]) -> None:
    """Forward and backward."""
    tensors[0].grad = tensors[1].grad = None
    WAYS[way](*tensors)[0].sum().backward()


def peak(way: str, width: int) -> float:
    """GiB above the inputs and the gradient of the weight, in a fresh process."""
    command = [sys.executable, __file__, way, str(width), *QUICK]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure_peak(way: str, width: int) -> None:
    """Print the growth of this process's peak memory over one step."""
    tensors = inputs(width)
    tensors[1].grad = torch.ones_like(tensors[1])  # every way needs this one: it belongs to the inputs
    before = peak_gib()
    step(way, tensors)
    print(peak_gib() - before)


def main() -> None:
    """Print the table."""
    rows = []
    for width in (256, 1024):
        tensors = inputs(width)
        a, b = alternate(
            lambda t=tensors: step("in blocks", t), lambda t=tensors: step("materialised", t), rounds=ROUNDS
        )
        del tensors
        ours, theirs = peak("in blocks", width), peak("materialised", width)
        rows.append(
            {
                "hidden": width,
                "in blocks s": statistics.median(a),
                "materialised s": statistics.median(b),
                "time ratio": median_ratio(a, b),
                "in blocks GiB": ours,
                "materialised GiB": theirs,
                "memory ratio": ours / theirs,
            }
        )
    figures = {
        "ratio": max(row["time ratio"] for row in rows),
        "memory_ratio": max(row["memory ratio"] for row in rows),
    }
    show(f"log-probabilities of {TOKENS} tokens at a vocabulary of {VOCABULARY:,}, FP32", rows, figures)


if __name__ == "__main__":
    if arguments():
        way, width = arguments()
        measure_peak(way, int(width))
    else:
        main()
