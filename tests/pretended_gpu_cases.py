"""Cases for a process of its own, which `test_pretended_gpu.py` starts: see `pretended_gpu`."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from builders import random_ids, tiny_policy
from pretended_gpu import DEVICE, MixedDevices, Watch, pretended_gpu  # before any backward pass
from recipes_for_tests import MACHINE, coin_questions, command, train
from steadyrl import parts
from steadyrl.algo import MiniRL, ledger
from steadyrl.engine import local, wave
from steadyrl.engine.base import EngineError, generate
from steadyrl.engine.local import LocalEngine
from steadyrl.measure.routes import route_metrics
from steadyrl.measure.step import old_pass_metrics, step_ledger, update_metrics
from steadyrl.model.loading import Policy
from steadyrl.run.logs import Row, read_jsonl
from steadyrl.training.schedule import Schedule
from steadyrl.training.trainer import LocalTrainer
from steadyrl.types import MicroBatch, Sampling, TokenBatch, Trajectory


@pytest.fixture
def watch() -> Iterator[Watch]:
    with pretended_gpu() as found:
        yield found


# ---- the device itself


def test_tensors_of_the_host_and_of_the_device_do_not_meet(watch):
    away = torch.ones(3, device=DEVICE)
    with pytest.raises(MixedDevices, match=r"pretended_gpu_cases.py:\d+: add"):
        away + torch.ones(3)
    assert (away + torch.tensor(1.0)).tolist() == [2.0] * 3  # a single number may


WAITS: dict[str, Callable[[Tensor], Any]] = {
    "a number": lambda x: float(x[0]),
    "a list": lambda x: x.tolist(),
    "a decision": lambda x: bool((x > 1).any()),
    "a mask": lambda x: x[x > 1],
    "places": lambda x: (x > 1).nonzero(),
    "different values": lambda x: x.unique(),
    "repetitions": lambda x: x.repeat_interleave(torch.ones_like(x, dtype=torch.long)),
    "a number written to places": lambda x: x.index_put_((torch.zeros_like(x),), torch.zeros_like(x[0])),
    "a copy to the host": lambda x: x.cpu(),
    "a copy to the device": lambda x: torch.ones(3).to(x.device),
    "a tensor made on the device": lambda x: torch.tensor([1, 2], device=x.device),
    "an index of the host": lambda x: x[torch.tensor([0, 2])],
}
STAYS: dict[str, Callable[[Tensor], Any]] = {
    "arithmetic": lambda x: (x * 2 + 1).sum(),
    "an index of the device": lambda x: x[x.argsort()],
    "another type": lambda x: x.double(),
    "zeros": lambda x: torch.zeros(3, device=x.device) + x,
    "known repetitions": lambda x: x.repeat_interleave(torch.ones_like(x, dtype=torch.long), output_size=3),
}


@pytest.mark.parametrize("what", WAITS)
def test_the_host_waits(watch, what):
    x = torch.arange(3, device=DEVICE)
    watch.waits.clear()
    WAITS[what](x)
    assert sum(watch.waits.values()) == 1, watch.waits


@pytest.mark.parametrize("what", STAYS)
def test_the_host_does_not_wait(watch, what):
    x = torch.arange(3, device=DEVICE)
    watch.waits.clear()
    STAYS[what](x)
    assert not watch.waits


# ---- a whole run


def everything(home: Path) -> dict[str, Any]:
    """Cold start, evaluation, R3, FP8 weights and cache, two updates a step, recomputed activations."""
    return {
        "task": coin_questions(home, count=32),
        "steps": 2,
        "runtime": {"activation_checkpointing": True},
        "engine": {"kv_precision": "fp8"},
        "update": {"minibatches": 2, "micro_tokens": 30},
        "rollout": {"prompts": 2, "responses": 4, "max_new_tokens": 4},
        "cold_start": {"batch": 2, "check_every": 1, "aux_loss": 0.01, "stages": [{"steps": 1}]},
        "evaluate": {"every": 0, "prompts": 2},
        "checkpoints": {"every": 1},
    }


@contextmanager
def trained_there(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every model that is built goes to the device, which no recipe can name."""
    built = parts.build_policy

    def moved(recipe: Any) -> Policy:
        policy = built(recipe)
        policy.model.to(DEVICE)  # pyright: ignore[reportArgumentType]
        return policy

    with pretended_gpu(), monkeypatch.context() as patch:
        patch.setattr(parts, "build_policy", moved)
        yield


def measured(run: Path) -> list[Row]:
    rows = [*read_jsonl(run / "cold_start.jsonl"), *read_jsonl(run / "metrics.jsonl")]
    return [{name: value for name, value in row.items() if not name.startswith(MACHINE)} for row in rows]


def test_a_run_a_resumed_run_and_gap_mix_no_devices(tmp_path, monkeypatch):
    expected = measured(train(tmp_path, "on-cpu", **everything(tmp_path)))
    with trained_there(monkeypatch):
        run = train(tmp_path, "there", **everything(tmp_path))
        found = measured(run)
        assert command("resume", run, "--checkpoint", "step-000001") == 0
        assert measured(run) == found
        assert command("gap", run) == 0
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-5)  # attention takes another kernel


# ---- the two halves of a step


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much there is of everything that a wait may grow with."""

    tokens: int = 8
    responses: int = 2
    prompts: int = 3
    layers: int = 2
    updates: int = 1
    micro_tokens: int = 1000


def policy_of(size: Size) -> Policy:
    """In bfloat16, in which a GPU multiplies by experts without waiting."""
    policy = tiny_policy(num_hidden_layers=size.layers, dtype=torch.bfloat16)
    policy.model.to(DEVICE)  # pyright: ignore[reportArgumentType]
    return policy


def sampled(policy: Policy, size: Size, watch: Watch) -> list[list[Trajectory]]:
    """Responses of a fixed length, to prompts of different lengths; `watch` then knows the waits of sampling."""
    engine = LocalEngine(policy.model, end_tokens=set(), precision="fp8", kv_precision="fp8")
    ids = [random_ids(3 + n, seed=n) for n in range(size.prompts)]
    watch.waits.clear()
    how = Sampling(temperature=1.0, max_new_tokens=size.tokens, top_k=5)
    groups = generate(engine, ids, responses=size.responses, sampling=how, seed=0)
    return [
        [Trajectory.single(prompt, c, advantage=(-1.0) ** n, group_tokens=9) for n, c in enumerate(group)]
        for prompt, group in zip(ids, groups, strict=True)
    ]


def learned(policy: Policy, groups: list[list[Trajectory]], size: Size, watch: Watch) -> int:
    """The θ_old pass, updates and all that is measured of them; the number of micro-batches."""
    trainer = LocalTrainer(
        policy=policy,
        optimizer=torch.optim.AdamW(policy.model.parameters(), lr=1e-3, fused=True),
        objective=MiniRL(),
        schedule=Schedule(peak=1e-3, total=size.updates),
        replay="R3",
        micro_tokens=size.micro_tokens,
    )
    watch.waits.clear()
    passes = [trainer.old_pass(micro) for micro in trainer.pack(groups)]
    updates = [trainer.update(number, groups, passes) for number in range(size.updates)]
    rows = step_ledger(passes, updates, policy_version=0)
    assert ledger.summary(rows) | old_pass_metrics(passes) | route_metrics(passes) | update_metrics(updates)
    return len(passes)


@cache
def of_sampling(size: Size) -> tuple[Counter[str], int]:
    """Waits by line, and how many micro-batches there were."""
    with pretended_gpu() as watch:
        sampled(policy_of(size), size, watch)
        return watch.waits.copy(), 0


@cache
def of_training(size: Size) -> tuple[Counter[str], int]:
    with pretended_gpu() as watch:
        policy = policy_of(size)
        micros = learned(policy, sampled(policy, size, watch), size, watch)
        return watch.waits.copy(), micros


Half = Callable[[Size], tuple[Counter[str], int]]
CEILINGS: dict[str, tuple[Half, Size, Size, float, float]] = {
    "a token": (of_sampling, Size(), Size(tokens=16), 8, 1 / 8),
    "a response": (of_sampling, Size(), Size(responses=6), 12, 0),
    "a prompt": (of_sampling, Size(), Size(prompts=6), 3, 0),
    "a layer of the engine": (of_sampling, Size(), Size(layers=4), 2, 0),
    "a layer of the trainer": (of_training, Size(), Size(layers=4), 2, 0),
    "a trained response": (of_training, Size(), Size(responses=6), 12, 0),
    "a micro-batch": (of_training, Size(responses=6), Size(responses=6, micro_tokens=60), 0, 14),
    "an update": (of_training, Size(), Size(updates=3), 2, 4),
}
"""What one more of something may add: which half of a step, two sizes, how many more the second has, and the most."""


@pytest.mark.parametrize("what", CEILINGS)
def test_the_waits_for_one_more(what):
    half, fewer, more, count, most = CEILINGS[what]
    before, micros = half(fewer)
    after, more_micros = half(more)
    new = after - before
    found = (after.total() - before.total()) / (count or more_micros - micros)
    assert found <= most, f"{what} more adds {found:.2f} waits, {most:.2f} are allowed: {new.most_common(12)}"


def planted_wait(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def wrong(wave: Any, t: int) -> Tensor:
        logits = right(wave, t)
        assert logits.isfinite().all()
        return logits

    return wrong


def test_a_planted_wait_breaks_the_ceiling(monkeypatch):
    monkeypatch.setattr(wave.Wave, "step", planted_wait(wave.Wave.step))
    of_sampling.cache_clear()
    with pytest.raises(AssertionError, match=r"a token more adds 1\.\d+ waits.*pretended_gpu_cases.py:\d+"):
        test_the_waits_for_one_more("a token")
    of_sampling.cache_clear()


# ---- planted mixtures

FAULTS: dict[str, tuple[Any, str, Callable[[Any], Any], str]] = {
    "the batch is left on the host": (TokenBatch, "to", lambda right: lambda batch, device: batch, "model/"),
    "routes are left on the host": (
        TokenBatch,
        "to",
        lambda right: lambda batch, device: replace(right(batch, device), routes=batch.routes),
        "routing/hooks.py",
    ),
    "the facts are left on the host": (
        MicroBatch,
        "to",
        lambda right: lambda micro, device: replace(micro, batch=micro.batch.to(device)),
        "algo/ratio.py",
    ),
    "prompts are left on the host": (
        wave,
        "_pad_left",
        lambda right: lambda prompts, width, device: right(prompts, width, torch.device("cpu")),
        "engine/wave.py",
    ),
    "random numbers are left on the host": (
        local,
        "sample",
        lambda right: lambda logits, uniform, sampling: right(logits, uniform.cpu(), sampling),
        "engine/sampling.py",
    ),
    "a bucket of the ledger is on the host": (
        ledger,
        "by_position",
        lambda right: lambda response: right(response.cpu()),
        "algo/buckets.py",
    ),
}
"""Whose function, its name, what is wrong with it, and the file that the error must name."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_mixture_is_found_at_its_line(fault, monkeypatch, watch):
    policy = policy_of(Size())
    module, name, wrong, place = FAULTS[fault]
    monkeypatch.setattr(module, name, wrong(getattr(module, name)))
    with pytest.raises((MixedDevices, EngineError), match=rf"{place}\S*:\d+"):  # an engine is tried as it is built
        learned(policy, sampled(policy, Size(), watch), Size(), watch)
