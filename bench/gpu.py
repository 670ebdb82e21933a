"""What a step costs on a CUDA device, in bfloat16, for a mixture of experts of 0.9 B parameters with random weights.

Sampling by the embedded engine, packing, the θ_old pass, an update, and the weights' way to the engine; what replay and
recording add to a forward and backward, in turns; and where the host waits for the device, by line.
"""

import statistics
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from _measure import alternate, median_ratio, ratio_interval, seconds, show, sized
from steadyrl.algo import MiniRL
from steadyrl.engine.base import generate
from steadyrl.engine.local import LocalEngine
from steadyrl.model.forward import response_logprobs
from steadyrl.model.loading import Policy, build_tiny
from steadyrl.model.packing import pack
from steadyrl.routing import record, replay
from steadyrl.training.forward import old_pass, update_at_old
from steadyrl.training.step import update
from steadyrl.types import Completion, MicroBatch, Sampling, Trajectory

DEVICE = "cuda"
PROMPTS, RESPONSES, PROMPT, NEW_TOKENS = sized(16, 2), sized(16, 2), sized(128, 8), sized(256, 24)
MICRO_TOKENS, ROUNDS, TURNS = sized(16_384, 64), sized(2, 1), sized(30, 1)
MODEL = {
    "vocab_size": sized(32_768, 64),
    "hidden_size": sized(1024, 64),
    "num_hidden_layers": sized(16, 2),
    "num_attention_heads": sized(16, 4),
    "num_key_value_heads": sized(4, 2),
    "head_dim": sized(64, 16),
    "num_experts": sized(32, 8),
    "num_experts_per_tok": sized(4, 2),
    "moe_intermediate_size": sized(512, 32),
    "intermediate_size": 512,
    "norm_topk_prob": True,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
HOW: dict[str, Any] = {"replay": "R3", "temperature": 1.0}


def waited(work: Callable[[], Any]) -> Callable[[], Any]:
    """The same work, which ends when the device has done it."""

    def whole() -> Any:
        found = work()
        torch.cuda.synchronize()
        return found

    return whole


def median_seconds(work: Callable[[], Any], *, rounds: int) -> float:
    """Of several rounds; the first is not counted."""
    return statistics.median([seconds(waited(work)) for _ in range(rounds + 1)][1:])


def policy() -> Policy:
    made = build_tiny(family="qwen3_moe", alphabet="01", config=MODEL, seed=0, dtype=torch.bfloat16)
    made.model.to(DEVICE).eval()  # pyright: ignore[reportArgumentType]
    return made


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, int(MODEL["vocab_size"]), (PROMPTS, PROMPT), generator=generator).tolist()


def sample(engine: LocalEngine, tokens: int = NEW_TOKENS) -> list[list[Completion]]:
    how = Sampling(temperature=1.0, max_new_tokens=tokens)
    return generate(engine, prompts(), responses=RESPONSES, sampling=how, seed=0)


def give_weights(held: Policy, engine: LocalEngine) -> None:
    engine.update_weights(held.model.named_parameters(), version=1)


def trajectories(groups: Sequence[Sequence[Completion]]) -> list[Trajectory]:
    """With advantages of both signs."""
    return [
        Trajectory.single(prompt, c, advantage=1.0 if n % 2 else -1.0, group_tokens=RESPONSES)
        for prompt, group in zip(prompts(), groups, strict=True)
        for n, c in enumerate(group)
    ]


def packed(held: Policy, answered: Sequence[Trajectory]) -> list[MicroBatch]:
    """On the device."""
    micros = pack(answered, micro_tokens=MICRO_TOKENS, one_block=held.one_block)
    return [micro.to(held.device) for micro in micros]


def take_update(held: Policy, optimizer: torch.optim.Optimizer, micros: Sequence[MicroBatch]) -> None:
    loss = partial(MiniRL(), responses=PROMPTS * RESPONSES, groups=PROMPTS)
    backwards = [partial(update_at_old, held, micro, loss, **HOW) for micro in micros]
    update(held.model, optimizer, backwards, max_grad_norm=1.0)


def parts_of_a_step(held: Policy) -> tuple[list[dict[str, Any]], list[MicroBatch], torch.optim.Optimizer, LocalEngine]:
    """Seconds and tokens a second of each part, and what the rest of the benchmark works on."""
    optimizer = torch.optim.AdamW(held.model.parameters(), lr=1e-6, fused=True)
    engines = {
        "native": LocalEngine(held.model, end_tokens=set(), max_sequences=PROMPTS * RESPONSES),
        "FP8 emulated": LocalEngine(held.model, end_tokens=set(), precision="fp8", kv_precision="fp8"),
    }
    answered = trajectories(sample(engines["native"]))
    micros = packed(held, answered)
    works: dict[str, tuple[Callable[[], Any], int]] = {
        f"sampling, {name}": (lambda engine=engine: sample(engine), 1) for name, engine in engines.items()
    }
    works |= {
        f"weights to the engine, {name}": (partial(give_weights, held, engine), ROUNDS)
        for name, engine in engines.items()
    }
    works |= {
        "packing": (lambda: packed(held, answered), ROUNDS),
        "θ_old pass": (lambda: [old_pass(held, micro, **HOW) for micro in micros], ROUNDS),
        "update": (lambda: take_update(held, optimizer, micros), ROUNDS),
    }
    rows = []
    for name, (work, rounds) in works.items():
        torch.cuda.reset_peak_memory_stats()
        took = median_seconds(work, rounds=rounds)
        peak = torch.cuda.max_memory_allocated() / 2**30
        tokens = PROMPTS * RESPONSES * NEW_TOKENS
        rows.append({"": name, "seconds": took, "response tokens/s": tokens / took, "peak GiB": peak})
    return rows, micros, optimizer, engines["native"]


def replay_costs(held: Policy, micro: MicroBatch) -> list[dict[str, Any]]:
    """With the routes of the model's own, so that both ways give every expert the same tokens."""
    model, batch = held.model, micro.batch

    def forward(way: Any, *, backward: bool) -> Any:
        with torch.set_grad_enabled(backward), way as recorder:
            logprobs, _ = response_logprobs(model, batch, temperature=1.0)
            if backward:
                logprobs.sum().backward()
                model.zero_grad()
            return None if recorder is None else recorder.routes()

    routes = forward(record(model), backward=False)
    pairs: dict[str, tuple[Callable[[], Any], bool]] = {
        "nothing, forward and backward": (nullcontext, True),
        "replay, forward and backward": (lambda: replay(model, routes), True),
        "recording, forward": (lambda: record(model), False),
        "recording with margins, forward": (lambda: record(model, margins=True), False),
    }
    rows = []
    for name, (way, backward) in pairs.items():
        a, b = alternate(
            waited(lambda way=way, backward=backward: forward(way(), backward=backward)),
            waited(lambda backward=backward: forward(nullcontext(), backward=backward)),
            rounds=TURNS,
        )
        low, high = ratio_interval(a, b)
        both = {"with, ms": 1e3 * statistics.median(a), "without, ms": 1e3 * statistics.median(b)}
        rows.append({"": name, **both, "ratio": median_ratio(a, b), "95%": f"{low:.3f} to {high:.3f}"})
    return rows


def waits(work: Callable[[], Any]) -> Counter[str]:
    """How often the host waits for the device, by the innermost line of Python."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    lines = [f"{'/'.join(Path(w.filename).parts[-2:])}:{w.lineno}" for w in seen if "synchroniz" in str(w.message)]
    return Counter(lines)


def wait_rows(held: Policy, micros: Sequence[MicroBatch], optimizer: Any, engine: LocalEngine) -> list[dict[str, Any]]:
    """What one more of each thing adds."""
    answered = trajectories(sample(engine, 8))
    pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any], int]] = {
        "decoded token": (lambda: sample(engine, 8), lambda: sample(engine, 16), 8),
        "micro-batch of the θ_old pass": (lambda: None, lambda: old_pass(held, micros[0], **HOW), 1),
        "micro-batch of an update": (
            lambda: take_update(held, optimizer, micros[:1]),
            lambda: take_update(held, optimizer, micros[:2]),
            1,
        ),
        "update": (lambda: None, lambda: take_update(held, optimizer, micros[:1]), 1),
        "packed micro-batch": (lambda: None, lambda: packed(held, answered[:1]), 1),
    }
    rows = []
    for name, (fewer, more, count) in pairs.items():
        found = waits(more)
        found.subtract(waits(fewer))
        shown = ", ".join(f"{line} ({n})" for line, n in found.most_common(4) if n > 0)
        rows.append({"one more": name, "waits": sum(found.values()) / count, "most of them": shown or "–"})
    return rows


def main() -> None:
    """Print the tables."""
    if not torch.cuda.is_available():
        print("torch sees no CUDA device, so nothing was measured")
        return
    held = policy()
    size = sum(p.numel() for p in held.model.parameters())
    name = torch.cuda.get_device_name()
    rows, micros, optimizer, engine = parts_of_a_step(held)
    what = f"{name}, {size / 1e9:.2f} B parameters, {PROMPTS} × {RESPONSES} responses of {NEW_TOKENS} tokens"
    figures: dict[str, Any] = {"device": name, "seconds": {row[""]: row["seconds"] for row in rows}}
    show(f"a step: {what}, {len(micros)} micro-batches", rows, figures)
    costs = replay_costs(held, micros[0])
    figures["ratios"] = {row[""]: row["ratio"] for row in costs}
    show("Routing Replay: one micro-batch, with and without", costs, figures)
    found = wait_rows(held, micros, optimizer, engine)
    figures["waits"] = {row["one more"]: row["waits"] for row in found}
    show("waits of the host for the device", found, figures)


if __name__ == "__main__":
    main()
