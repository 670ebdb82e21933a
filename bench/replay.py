"""What Routing Replay costs: the demo's model, forward and backward with and without, and the θ_old pass with and
without recording; each pair alternates."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from _measure import alternate, median_ratio, show
from steadyrl.config import load
from steadyrl.model.packing import pack_sequences
from steadyrl.model.routing import record, replay
from steadyrl.model.scoring import score
from steadyrl.session import build_policy

ROUNDS, SEQUENCES, LENGTH, PROMPT = 40, 128, 60, 20


def main() -> None:
    """Print the table."""
    policy = build_policy(load(Path("recipes/demo.toml")))
    model = policy.model
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 18, (SEQUENCES, LENGTH), generator=generator).tolist()
    (batch,) = pack_sequences(ids, [PROMPT] * SEQUENCES, micro_tokens=8192, one_block=False, device=policy.device)
    with torch.no_grad(), record(model) as recorder:
        score(model, batch, temperature=1.0)
        routes = recorder.routes()

    def step() -> None:
        model.zero_grad()
        score(model, batch, temperature=1.0)[0].sum().backward()

    def within(context: Callable, work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            with context():
                work()

        return run

    @torch.no_grad()
    def recorded() -> None:
        with record(model) as recorder:
            score(model, batch, temperature=1.0)
            recorder.routes()

    @torch.no_grad()
    def plain() -> None:
        score(model, batch, temperature=1.0)

    pairs = {
        "replay, forward and backward": (within(lambda: replay(model, routes), step), within(nullcontext, step)),
        "recording, forward": (recorded, plain),
    }
    rows, figures = [], {}
    for name, (ours, theirs) in pairs.items():
        a, b = alternate(ours, theirs, rounds=ROUNDS)
        figures[name.split(",")[0]] = median_ratio(a, b)
        rows.append({"": name, "with, ms": 1e3 * sorted(a)[len(a) // 2], "without, ms": 1e3 * sorted(b)[len(b) // 2]})
        rows[-1]["ratio"] = figures[name.split(",")[0]]
    bytes_each = routes.element_size()
    title = f"{len(batch.input_ids):,} positions of the demo's model; {bytes_each} byte per (token, layer, slot)"
    show(title, rows, {"ratio": figures["replay"], "recording": figures["recording"], "route_bytes": bytes_each})


if __name__ == "__main__":
    main()
