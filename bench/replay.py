"""What Routing Replay costs: forward and backward of the demo's model with and without replay, and the θ_old pass with
and without recording; each pair alternates. "nothing" compares the same work with itself: the noise of the machine."""

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from transformers import PreTrainedModel

from _measure import alternate, median_ratio, ratio_interval, show, sized
from steadyrl.build import build_policy
from steadyrl.model.forward import response_logprobs
from steadyrl.model.loading import Policy
from steadyrl.model.packing import pack_sequences
from steadyrl.recipe import shipped
from steadyrl.routing import Recorder, record, replay
from steadyrl.types import TokenBatch

ROUNDS, SEQUENCES, LENGTH, PROMPT = sized(150, 2), sized(128, 8), 60, 20
Way = AbstractContextManager[Recorder | None]


def packed(policy: Policy) -> TokenBatch:
    """One micro-batch of random tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 18, (SEQUENCES, LENGTH), generator=generator).tolist()
    (batch,) = pack_sequences(ids, [PROMPT] * SEQUENCES, micro_tokens=8192, one_block=False)
    return batch


def update(model: PreTrainedModel, batch: TokenBatch, way: Way) -> None:
    """Forward and backward."""
    model.zero_grad()
    with way:
        response_logprobs(model, batch, temperature=1.0)[0].sum().backward()


@torch.no_grad()
def old_pass(model: PreTrainedModel, batch: TokenBatch, way: Way) -> torch.Tensor | None:
    """A forward, and the routes that were recorded."""
    with way as recorder:
        response_logprobs(model, batch, temperature=1.0)
        return None if recorder is None else recorder.routes()


def main() -> None:
    """Print the table."""
    policy = build_policy(shipped.read("demo"))
    model, batch = policy.model, packed(policy)
    routes = old_pass(model, batch, record(model))
    assert routes is not None
    ways: dict[str, tuple[Callable[..., object], Callable[[], Way]]] = {
        "nothing, forward and backward": (update, nullcontext),
        "replay, forward and backward": (update, lambda: replay(model, routes)),
        "recording, forward": (old_pass, lambda: record(model)),
        "recording with margins, forward": (old_pass, lambda: record(model, margins=True)),
    }
    rows, figures = [], {}
    for name, (work, way) in ways.items():
        a, b = alternate(
            lambda work=work, way=way: work(model, batch, way()),
            lambda work=work: work(model, batch, nullcontext()),
            rounds=ROUNDS,
        )
        figures[name] = median_ratio(a, b)
        milliseconds = {"with, ms": 1e3 * statistics.median(a), "without, ms": 1e3 * statistics.median(b)}
        low, high = ratio_interval(a, b)
        rows.append({"": name, **milliseconds, "ratio": figures[name], "95%": f"{low:.3f} to {high:.3f}"})
    size = routes.element_size()
    title = f"{len(batch.input_ids):,} positions of the demo's model; {size} byte per (token, layer, slot)"
    show(title, rows, {"ratio": figures["replay, forward and backward"], "ratios": figures, "route_bytes": size})


if __name__ == "__main__":
    main()
