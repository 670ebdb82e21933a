"""What is paid for every token beside the model: packing, the ledger, and the check of routes before a replay."""

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from _measure import MODEL, seconds, show, sized
from steadyrl.algo import ledger
from steadyrl.model.loading import Policy, build_tiny
from steadyrl.model.packing import pack
from steadyrl.routing import replay
from steadyrl.types import Completion, Trajectory

ROUNDS = sized(9, 1)
GROUPS, RESPONSES = sized(8, 2), 16
PROMPT, LONGEST = sized(300, 20), sized(4000, 40)
LEDGER_TOKENS = sized(2**20, 2**14)


def trajectories(*, routed: bool) -> list[Trajectory]:
    """Groups of responses of any length up to the longest, with the routes of a model of 4 layers and 2 slots."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(GROUPS):
        prompt = torch.randint(100_000, (PROMPT,), generator=generator).tolist()
        alike = torch.randint(16, (PROMPT, 4, 2), dtype=torch.uint8, generator=generator)
        for _ in range(RESPONSES):
            count = int(torch.randint(LONGEST // 8, LONGEST, (), generator=generator))
            own = torch.randint(16, (count - 1, 4, 2), dtype=torch.uint8, generator=generator)
            completion = Completion(
                token_ids=tuple(torch.randint(100_000, (count,), generator=generator).tolist()),
                logprobs=-torch.rand(count, generator=generator),
                routes=torch.cat([alike, own]) if routed else None,
                finish_reason="stop",
                policy_version=0,
            )
            found.append(Trajectory.single(prompt, completion, advantage=1.0, group_tokens=1))
    return found


def packing(*, routed: bool) -> dict[str, Any]:
    """Host time of packing, per fed token."""
    some = trajectories(routed=routed)
    took = best(lambda: pack(some, micro_tokens=32_768, one_block=False))
    name = "packing, with routes" if routed else "packing"
    return {"what": name, "value": 1e6 * took / sum(t.fed for t in some), "unit": "µs/token"}


def ledger_memory(length: int) -> dict[str, Any]:
    """Memory that the ledger of three factors takes while it is made, split in four ways."""
    generator = torch.Generator().manual_seed(0)
    count = LEDGER_TOKENS // length
    response = torch.arange(count).repeat_interleave(length)
    rollout, old, new = (-torch.rand(len(response), generator=generator) for _ in range(3))
    known = ledger.factors(new, rollout, old).known
    signs, lags = torch.arange(count) % 2 * 2.0 - 1.0, torch.arange(count) % 4
    differs = torch.rand(len(response), 4, generator=generator) < 0.05
    routed = torch.rand(len(response), generator=generator) < 0.99

    def work() -> None:
        splits = [
            ledger.by_position(response),
            ledger.by_advantage(signs.repeat_interleave(length)),
            ledger.by_version(lags.repeat_interleave(length)),
            ledger.by_routes(differs, routed),
        ]
        ledger.table(known, response, splits)

    name = f"ledger, responses of {length:,}"
    return {"what": name, "value": peak_bytes(work) / len(response), "unit": "bytes/token"}


def route_check() -> dict[str, Any]:
    """Time to enter a replay, which looks at every route."""
    policy = model()
    positions = sized(32_768, 256)
    scores = torch.rand(positions, MODEL["num_hidden_layers"], MODEL["num_experts"])
    routes = scores.argsort(dim=-1)[..., : MODEL["num_experts_per_tok"]].to(torch.uint8)

    def work() -> None:
        with replay(policy.model, routes):
            pass

    return {"what": f"check of routes, {positions:,} positions", "value": 1e3 * best(work), "unit": "ms"}


def model() -> Policy:
    return build_tiny(family="qwen3_moe", alphabet="0123456789", config=MODEL, seed=0, dtype=torch.float32)


def best(work: Callable[[], Any]) -> float:
    """Least seconds of a call."""
    return min(seconds(work) for _ in range(ROUNDS))


def peak_bytes(work: Callable[[], Any]) -> int:
    """Most memory of tensors that a call holds at a time, above what there was before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        work()
    assert seen.profiler is not None
    results = seen.profiler.kineto_results
    assert results is not None
    events = sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    held = most = 0
    for event in events:
        held += event.nbytes()
        most = max(most, held)
    return most


def main() -> None:
    torch.set_num_threads(1)
    rows = [packing(routed=False), packing(routed=True), ledger_memory(64), ledger_memory(1024), route_check()]
    show("Costs of a token beside the model, on one thread", rows, {row["what"]: row["value"] for row in rows})


if __name__ == "__main__":
    main()
