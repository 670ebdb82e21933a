"""Whole runs on vLLM: what R3 removes, what a run directory holds, resuming, and what a kill leaves behind."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from machine import needs_fp8_cache, needs_vllm
from recipes_for_tests import TINY, coin_questions, command, comparable, merged, train, write_recipe
from steadyrl.algo import mismatch
from steadyrl.cold_start import cold_start
from steadyrl.engine.kv_cache import missing_instructions
from steadyrl.model.repeatable import repeatable
from steadyrl.parts import prepared_parts
from steadyrl.recipe import resolve
from steadyrl.rollout.advantages import with_advantages
from steadyrl.run.directory import Run
from steadyrl.run.logs import read_jsonl
from steadyrl.training.forward import old_pass

pytestmark = [pytest.mark.vllm, needs_vllm]

MODEL = {**TINY["model"]["config"], "head_dim": 32, "moe_intermediate_size": 32}

ON_VLLM = {
    "model": {"config": MODEL},
    "engine": {"kind": "vllm", "precision": "fp8", "kv_precision": "auto", "cache_gib": 0.05},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def finished(home):
    return train(home, "finished", task=coin_questions(home), **ON_VLLM)


def test_a_run_says_what_sampled(finished: Path) -> None:
    facts = json.loads((finished / "engine.json").read_text())
    assert (facts["engine"], facts["version"], facts["device"]) == ("vllm", "0.30.0", "cpu")
    fp8 = missing_instructions() is None
    assert (facts["dtype"], facts["kv_cache"]) == ("float32", "fp8 (e4m3), by vLLM" if fp8 else "native")
    rows = read_jsonl(finished / "eval.jsonl")
    assert {row["precision"] for row in rows if row["step"] == 4} == {"vllm-fp8+kv" if fp8 else "vllm-fp8", "native"}
    steps = read_jsonl(finished / "metrics.jsonl")
    assert [row["policy_version"] for row in steps] == [0, 1, 2, 3]
    assert all(row["routes/unrouted"] == 0.0 and row["mismatch/k3"] < 0.05 for row in steps)


def test_resuming_repeats_every_bit(finished: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    assert command("resume", copy, "--checkpoint", "step-000002") == 0
    assert comparable(copy) == comparable(finished)


def test_a_missing_model_is_an_error(tmp_path: Path, capfd) -> None:
    model = {"kind": "pretrained", "path": str(tmp_path / "nowhere"), "config": None}
    recipe = write_recipe(tmp_path, **ON_VLLM)
    tree = json.loads(recipe.read_text())
    tree["model"] = {key: value for key, value in model.items() if value is not None}
    recipe.write_text(json.dumps(tree))
    assert command("train", recipe, "--run", tmp_path / "run") == 2
    assert "there is no such folder" in capfd.readouterr().err


@needs_fp8_cache  # the native cache's difference is too small for this many responses
def test_replay_lowers_the_divergence(tmp_path: Path) -> None:
    """D_KL[μ‖π_old] by k3, of the same responses with the trainer's experts and with vLLM's, after a cold start."""
    changes = {
        "model": {"config": MODEL | {"hidden_size": 64, "num_experts": 8, "num_hidden_layers": 3}},
        "task": {"min_terms": 2, "max_terms": 4},
        "rollout": {"max_new_tokens": 24},
        "engine": ON_VLLM["engine"] | {"precision": "native"},
        "evaluate": {"prompts": 4},
        "cold_start": {"batch": 64, "check_every": 1000, "stages": [{"steps": 150}]},
    }
    recipe = resolve(merged(TINY, changes), source="test")
    with prepared_parts(recipe) as parts, repeatable(parts.trainer.policy.device):
        rollouter, trainer = parts.rollouter, parts.trainer
        run = Run.create(tmp_path / "run", recipe, inputs={})
        cold_start(recipe, trainer.policy, rollouter, parts.evaluator, run, stop_asked=lambda: False)
        run.close()
        groups = rollouter.groups("held_out", range(64), responses=8, sampling=rollouter.sampling, key="k3")
        rewards = rollouter.rewards("held_out", groups)
        answered = with_advantages(
            groups, rewards, advantage=rollouter.advantage, normalise=False, options=recipe.advantage
        )
        micros = trainer.pack(answered)
        natural, replayed = (per_response(trainer.policy, micros, mode) for mode in ("none", "R3"))
    saved = natural - replayed
    mean, error = saved.mean().item(), saved.std().item() / math.sqrt(len(saved))
    print(f"k3 {natural.mean():.2e} -> {replayed.mean():.2e}; saved {mean:.2e} +- {1.96 * error:.2e}")
    assert mean - 1.96 * error > 0.0


def per_response(policy, micros, mode: str) -> torch.Tensor:
    """Mean over a response's tokens of r − 1 − log r with r = π_old/μ_old, for each response."""
    found = []
    for micro in micros:
        old = old_pass(policy, micro, replay=mode, temperature=1.0).old_logprobs
        log_ratio = mismatch(old, micro.rollout_logprobs).double()
        terms = log_ratio.exp() - 1.0 - log_ratio
        totals = torch.zeros(int(micro.response.max()) + 1, dtype=torch.float64).index_add(0, micro.response, terms)
        found.append(totals / torch.bincount(micro.response))
    return torch.cat(found)


def test_a_kill_leaves_no_process(home: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, task=coin_questions(home), **ON_VLLM | {"steps": 10_000})
    mark = f"STEADYRL_TEST={tmp_path}"
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "steadyrl", "train", str(recipe), "--run", str(run)],
        env=dict(os.environ, STEADYRL_TEST=str(tmp_path)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").is_file() or not (run / "metrics.jsonl").read_text():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert process.pid in marked(mark)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not marked(mark)


def marked(mark: str) -> list[int]:
    """Processes that were started with this in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = path.read_bytes()
        except OSError:  # it has ended meanwhile
            continue
        if mark.encode() in environment:
            found.append(int(path.parent.name))
    return found
