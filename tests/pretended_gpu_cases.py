"""Cases for a process of its own, which `test_pretended_gpu.py` starts: see `pretended_gpu`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from builders import random_ids, tiny_policy
from pretended_gpu import DEVICE, MixedDevices, Watch, pretended_gpu  # before any backward pass
from recipes_for_tests import MACHINE, coin_questions, command, train
from steadyrl import session
from steadyrl.algo import MiniRL, ledger
from steadyrl.disagreement import route_metrics
from steadyrl.engine import local
from steadyrl.engine.local import LocalEngine
from steadyrl.jsonl import Row, read_jsonl
from steadyrl.model import packing
from steadyrl.model.loading import Policy
from steadyrl.model.packing import pack_responses
from steadyrl.types import Response, Sampling
from steadyrl.update import later_forward, score_old, scoring_metrics, step_ledger, update, update_metrics

HOW = {"mode": "R3", "temperature": 1.0}


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
        "hold": {"activation_checkpointing": True},
        "engine": {"kv_precision": "fp8"},
        "update": {"minibatches": 2, "micro_tokens": 40},
        "rollout": {"prompts": 4, "responses": 4, "max_new_tokens": 6},
        "cold_start": {"batch": 4, "check_every": 1, "aux_loss": 0.01, "stages": [{"steps": 1}]},
        "evaluate": {"every": 0, "prompts": 2},
        "checkpoints": {"every": 1},
    }


@contextmanager
def trained_there(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every model that is built goes to the device, which no recipe can name."""
    built = session.build_policy

    def moved(recipe: Any) -> Policy:
        policy = built(recipe)
        policy.model.to(DEVICE)  # pyright: ignore[reportArgumentType]
        return policy

    with pretended_gpu(), monkeypatch.context() as patch:
        patch.setattr(session, "build_policy", moved)
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
        assert command("eval", run) == 0
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-5)  # attention takes another kernel


# ---- the two halves of a step


def sampled(policy: Policy, *, prompts: int = 3, responses: int = 2, tokens: int = 8) -> list[Response]:
    """Responses of a fixed length, to prompts of different lengths."""
    engine = LocalEngine(policy.model, end_tokens=set(), precision="fp8", kv_precision="fp8")
    ids = [random_ids(3 + n, seed=n) for n in range(prompts)]
    how = Sampling(temperature=1.0, max_new_tokens=tokens, top_k=5)
    with counted_from_here():
        groups = engine.generate(ids, responses=responses, sampling=how, seed=0)
    return [
        Response(prompt_ids=prompt, completion=completion, advantage=(-1.0) ** n, group_tokens=responses * tokens)
        for prompt, group in zip(ids, groups, strict=True)
        for n, completion in enumerate(group)
    ]


def learned(policy: Policy, responses: list[Response], *, micro_tokens: int = 1000, updates: int = 1) -> int:
    """The θ_old pass, updates and everything that is measured of them; how many micro-batches there were."""
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-3, fused=True)
    scored, outcomes = [], []
    with counted_from_here():
        micros = pack_responses(responses, micro_tokens=micro_tokens, one_block=False, device=policy.device)
        scored = [score_old(policy, micro, **HOW) for micro in micros]
        for _ in range(updates):
            forwards = [later_forward(policy, s, temperature=1.0) for s in scored]
            counts = {"responses": len(responses), "groups": 3, "max_grad_norm": 1.0}
            outcomes.append(update(policy, optimizer, MiniRL(), forwards, **counts))
        rows = step_ledger(scored, outcomes, policy_version=0)
        assert ledger.summary(rows) | scoring_metrics(scored) | route_metrics(scored) | update_metrics(outcomes)
    return len(micros)


@contextmanager
def counted_from_here() -> Iterator[None]:
    """What came before, such as building an engine, does not count."""
    _CURRENT[-1].waits.clear()
    yield


_CURRENT: list[Watch] = []


def there(layers: int = 2) -> Policy:
    """In bfloat16, in which a GPU multiplies by experts without waiting."""
    policy = tiny_policy(num_hidden_layers=layers, dtype=torch.bfloat16)
    policy.model.to(DEVICE)  # pyright: ignore[reportArgumentType]
    return policy


FAULTS: dict[str, tuple[Any, str, Callable[[Any], Any], str]] = {
    "the batch is left on the host": (packing, "_to", lambda right: lambda batch, device: batch, "model/"),
    "prompts are left on the host": (
        local,
        "_pad_left",
        lambda right: lambda prompts, width, device: right(prompts, width, torch.device("cpu")),
        "engine/local.py|model/",
    ),
    "random numbers are left on the host": (
        local,
        "sample",
        lambda right: lambda logits, uniform, sampling: right(logits, uniform.cpu(), sampling),
        "engine/local.py",
    ),
    "a bucket of the ledger is on the host": (
        ledger,
        "by_position",
        lambda right: lambda response: right(response.cpu()),
        "algo/ledger.py",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_at_its_line(fault, monkeypatch, watch):
    policy = there()
    _CURRENT.append(watch)
    module, name, wrong, place = FAULTS[fault]
    monkeypatch.setattr(module, name, wrong(getattr(module, name)))
    with pytest.raises(MixedDevices, match=rf"({place})\S*:\d+"):
        learned(policy, sampled(policy))
