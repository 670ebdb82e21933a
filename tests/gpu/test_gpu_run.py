"""Whole runs on a CUDA device: the command line keeps its promises there, and the numbers are near the CPU's."""

import math
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from machine import GPU, on_gpu
from recipes_for_tests import DENSE, MACHINE, coin_questions, command, merged, train
from steadyrl.clock import Clock
from steadyrl.run.logs import Row, read_jsonl

pytestmark = on_gpu

NOISE = ("mismatch/", "replay/", "routes/margin", "surrogate/", "staleness/", "weight/ess")
"""Metrics that without FP8 are little more than rounding errors of two engines."""


def everything(home: Path, device: str = GPU) -> dict[str, Any]:
    """Three steps of all that a run can do: cold start, evaluation, R3, FP8 weights and cache, two updates a step."""
    return {
        "task": coin_questions(home),
        "steps": 3,
        "runtime": {"device": device},
        "engine": {"kv_precision": "fp8"},
        "update": {"minibatches": 2},
        "cold_start": {"batch": 16, "check_every": 2, "aux_loss": 0.01, "stages": [{"steps": 1}, {"steps": 3}]},
        "checkpoints": {"every": 1},
    }


def plain(home: Path, device: str, **more: Any) -> dict[str, Any]:
    """One step of a sampler in the model's own precision, whose tokens are the CPU's but for ties."""
    quiet = {"steps": 1, "engine": {"precision": "native"}, "evaluate": {"every": 0, "prompts": 8}}
    return merged({"task": coin_questions(home), "runtime": {"device": device}} | quiet, more)


def rows(run: Path, name: str = "metrics") -> list[Row]:
    return read_jsonl(run / f"{name}.jsonl")


def require_finite(run: Path) -> None:
    for row in [*rows(run), *rows(run, "ledger"), *rows(run, "eval"), *rows(run, "cold_start")]:
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, int | float)), row


def same_to(rel: float, one: Row, other: Row) -> None:
    """Every metric of two rows agrees, but for those of the machine and for noise."""
    left_out = (*MACHINE, *NOISE)
    both = {name: (value, other[name]) for name, value in one.items() if not name.startswith(left_out)}
    differ = {name: pair for name, pair in both.items() if pair[0] != pytest.approx(pair[1], rel=rel, abs=rel)}
    assert not differ


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def whole(home):
    return train(home, "whole", **everything(home))


@pytest.fixture(scope="module")
def on_cpu(home):
    return train(home, "on-cpu", **everything(home, "cpu"))


def test_a_run_with_everything_gives_finite_numbers(whole):
    assert [row["step"] for row in rows(whole)] == [1, 2, 3]
    assert all(row["update/skipped"] == 0 for row in rows(whole))
    assert [row["policy_version"] for row in rows(whole)] == [0, 2, 4]
    require_finite(whole)


def test_the_cold_start_is_that_of_the_cpu(whole, on_cpu):
    losses, expected = ([row["loss"] for row in rows(run, "cold_start")] for run in (whole, on_cpu))
    assert losses == pytest.approx(expected, rel=1e-3)


def test_an_fp8_sampler_is_as_far_from_the_trainer_as_on_the_cpu(whole, on_cpu):
    ours, expected = rows(whole)[0], rows(on_cpu)[0]
    assert ours["policy/entropy"] == pytest.approx(expected["policy/entropy"], rel=0.05)
    assert expected["mismatch/k3"] / 4 < ours["mismatch/k3"] < 4 * expected["mismatch/k3"]


def test_the_first_update_of_a_step_meets_a_ratio_of_exactly_one(whole):
    split = [row for row in rows(whole, "ledger") if (row["factor"], row["split"]) == ("staleness", "version")]
    k3 = {(row["step"], row["bucket"]): row["k3"] for row in split}  # the bucket is the number of updates since θ_old
    assert all(k3[step, "0"] == 0.0 for step in (1, 2, 3))
    assert all(k3[step, "1"] > 0.0 for step in (1, 2, 3))


@pytest.mark.parametrize("family", ["qwen3_moe", "dense"])
def test_a_step_is_that_of_the_cpu(home, tmp_path, family):
    more = {"update": {"replay": "R3"}} if family == "qwen3_moe" else merged(DENSE, {"update": {"replay": "none"}})
    ours, expected = (
        train(tmp_path, name, **plain(home, device, **more)) for name, device in (("ours", GPU), ("expected", "cpu"))
    )
    same_to(2e-2, rows(ours)[0], rows(expected)[0])
    require_finite(ours)


@pytest.mark.parametrize("changes", [{"runtime": {"dtype": "bfloat16"}}, {"runtime": {"device": f"{GPU}:0"}}], ids=str)
def test_another_way_to_hold_the_model(home, tmp_path, changes):
    run = train(tmp_path, **merged(everything(home), changes | {"steps": 2}))
    assert all(row["update/skipped"] == 0 for row in rows(run))
    require_finite(run)


def test_a_resumed_run_samples_the_same_and_ends_near(home, whole, tmp_path):
    """Bits are promised on the CPU alone: here gradients are added in any order."""
    run = Path(shutil.copytree(whole, tmp_path / "resumed"))
    assert command("resume", run, "--checkpoint", "step-000002") == 0
    before, after = ([row for row in rows(r, "rollouts") if row["step"] == 3] for r in (whole, run))
    assert [row["response"] for row in after] == [row["response"] for row in before]
    same_to(1e-3, rows(run)[2], rows(whole)[2])


def test_gap_and_eval_read_the_run(whole, tmp_path, capfd):
    run = Path(shutil.copytree(whole, tmp_path / "read"))
    for name in ("gap", "eval"):
        assert command(name, run) == 0
        told = capfd.readouterr().out
        assert "nan" not in told
        assert len(told.splitlines()) > 2


def test_the_memory_is_that_of_the_device(home, tmp_path):
    torch.cuda.reset_peak_memory_stats()
    run = train(tmp_path, **plain(home, GPU))
    peak = rows(run)[-1]["memory/peak_gib"]
    assert isinstance(peak, float)
    assert 0.0 < peak < 0.5  # this process holds more on the host
    assert peak <= torch.cuda.max_memory_allocated() / 2**30


def test_a_phase_lasts_until_the_device_has_done_its_work():
    clock, start = Clock(torch.device(GPU)), time.perf_counter()
    with clock("update"):
        torch.cuda._sleep(400_000_000)  # cycles; the call itself returns at once
    assert clock.seconds["seconds/update"] > 0.1
    assert clock.seconds["seconds/update"] <= time.perf_counter() - start
