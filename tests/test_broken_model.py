"""A model that is no longer finite ends the run with status 1, and its good weights stay."""

import errno
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recipes_for_tests import coin_questions, command, write_recipe
from steadyrl import loop
from steadyrl.engine.local import LocalEngine
from steadyrl.guard import ModelGuard
from steadyrl.run.logs import read_jsonl

KEPT = {"every": 1, "keep": 1}


def broken_at(monkeypatch, step: int, value: float, *, name: str = "lm_head") -> None:
    """From the end of this global step on, a part of the weights has this value."""
    original = loop.hand_over

    def hand_over(engine, trainer):
        if engine.policy_version and trainer.progress.step == step:
            with torch.no_grad():
                next(p for n, p in trainer.weights() if name in n).fill_(value)
        original(engine, trainer)

    monkeypatch.setattr(loop, "hand_over", hand_over)


def all_finite(folder: Path) -> bool:
    return all(bool(value.isfinite().all()) for value in load_file(folder / "model" / "model.safetensors").values())


def largest(folder: Path) -> float:
    """The largest weight; NaN where one is."""
    weights = load_file(folder / "model" / "model.safetensors").values()
    return max(float(value.abs().max()) for value in weights)


@pytest.mark.parametrize("value", [math.nan, 1e38])
def test_a_model_that_broke_stops_the_run_and_keeps_its_last_good_checkpoint(value, tmp_path, monkeypatch, capfd):
    """1e38 is finite itself: only what is computed with it is not."""
    broken_at(monkeypatch, 3, value)
    run, evaluate = tmp_path / "run", {"every": 0, "prompts": 4}
    recipe = write_recipe(tmp_path, task=coin_questions(tmp_path), steps=12, checkpoints=KEPT, evaluate=evaluate)
    assert command("train", recipe, "--run", run) == 1
    told = capfd.readouterr().err
    assert "not finite" in told
    assert "Traceback" not in told
    (kept,) = (run / "checkpoints").iterdir()
    assert kept.name == "step-000002"  # that of step 3 would hold the broken weights
    assert largest(kept) < 10
    assert largest(run / "incident") < 10


def test_a_model_that_breaks_in_the_last_step_does_not_end_well(tmp_path, monkeypatch, capfd):
    broken_at(monkeypatch, 4, math.nan)
    run = tmp_path / "run"
    recipe = write_recipe(tmp_path, task=coin_questions(tmp_path), steps=4, checkpoints=KEPT)
    assert command("train", recipe, "--run", run) == 1
    assert "the model is broken" in capfd.readouterr().err
    assert all_finite(run / "incident")
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000003"]


def test_rewards_that_are_all_equal_do_not_hide_a_broken_model(tmp_path, monkeypatch, capfd):
    """Nothing is updated, so no loss tells."""
    task = coin_questions(tmp_path, reward="def reward(prompt, completion):\n    return 0.0\n")
    original = loop.hand_over

    def hand_over(engine, trainer):
        if trainer.progress.step == 2:
            with torch.no_grad():
                next(trainer.weights())[1].fill_(math.nan)
        original(engine, trainer)

    monkeypatch.setattr(loop, "hand_over", hand_over)
    recipe = write_recipe(tmp_path, task=task, steps=9, evaluate={"every": 0, "prompts": 4}, checkpoints={"every": 9})
    assert command("train", recipe, "--run", tmp_path / "run") == 1
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [row["update/skipped"] for row in rows if row["step"] > 2][:2] == [1, 1]


def plant_not_a_number(monkeypatch, *, rollout: int) -> None:
    """Let a log-probability of the engine be no number, in one rollout, counted from 1."""
    collect, count = LocalEngine.collect, 0

    def broken(self):
        nonlocal count
        for number, answer in enumerate(collect(self)):
            rolling_out = len(answer.completions) == 4
            count += rolling_out and number == 0
            if rolling_out and count == rollout:
                answer.completions[0].logprobs.fill_(math.nan)
            yield answer

    monkeypatch.setattr(LocalEngine, "collect", broken)


def test_an_engine_that_errs_alone_is_an_engine_error(tmp_path, monkeypatch, capfd):
    plant_not_a_number(monkeypatch, rollout=1)
    recipe = write_recipe(tmp_path, steps=2)
    assert command("train", recipe, "--run", tmp_path / "run") == 2
    told = capfd.readouterr().err
    assert "the engine returned the log-probability nan" in told
    assert not (tmp_path / "run" / "incident").exists()


def test_one_bad_step_is_skipped_and_the_run_goes_on(tmp_path, monkeypatch):
    """The trainer, too, cannot answer the prompts of one step."""
    plant_not_a_number(monkeypatch, rollout=2)
    monkeypatch.setattr(ModelGuard, "finite", lambda guard, brief=False: brief)
    run = tmp_path / "run"
    recipe = write_recipe(tmp_path, task=coin_questions(tmp_path), steps=4, checkpoints={"every": 1, "keep": 9})
    assert command("train", recipe, "--run", run, report=True) == 0
    assert [row["update/skipped"] for row in read_jsonl(run / "metrics.jsonl")] == [0, 1, 0, 0]
    saved = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert saved == ["step-000000", "step-000001", "step-000003", "step-000004"]
    assert json.loads((run / "checkpoints" / "step-000004" / "state.json").read_text())["broken"] is False


def test_gradients_that_overflow_prune_no_checkpoint_and_the_earlier_one_goes_on(tmp_path, capfd):
    """The first update makes weights of 1e30: they are finite, so are log-probabilities, and no gradient is."""
    run, huge = tmp_path / "run", {"learning_rate": 1e30, "max_grad_norm": None}
    keep = {"every": 1, "keep": 2}
    recipe = write_recipe(tmp_path, task=coin_questions(tmp_path), steps=9, optimizer=huge, checkpoints=keep)
    assert command("train", recipe, "--run", run) == 1
    capfd.readouterr()
    first, *later = sorted((run / "checkpoints").iterdir())
    assert first.name == "step-000000"
    assert later
    assert largest(first) < 10
    changed = json.loads((run / "recipe.json").read_text())
    changed["optimizer"]["learning_rate"] = 1e-3
    (run / "recipe.json").write_text(json.dumps(changed))
    assert command("resume", run, "--checkpoint", first.name) == 0


def test_a_model_that_was_broken_before_the_first_checkpoint_is_one_sentence(tmp_path, monkeypatch, capfd):
    original = loop.cold_start

    def breaking(recipe, policy, rollouter, *arguments, **options):
        original(recipe, policy, rollouter, *arguments, **options)
        with torch.no_grad():
            next(policy.model.parameters()).fill_(math.nan)
        rollouter.engine.update_weights(policy.model.named_parameters(), version=0)

    monkeypatch.setattr(loop, "cold_start", breaking)
    recipe = write_recipe(tmp_path, steps=2, cold_start={"stages": [{"steps": 1}]})
    assert command("train", recipe, "--run", tmp_path / "run") == 1
    told = capfd.readouterr().err
    assert "No good state was saved before" in told
    assert "Traceback" not in told


def test_an_incident_that_cannot_be_written_still_tells_why_the_run_stopped(tmp_path, monkeypatch, capfd):
    broken_at(monkeypatch, 3, math.nan)

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("steadyrl.run.incident.shutil.copytree", full)
    run = tmp_path / "run"
    recipe = write_recipe(tmp_path, task=coin_questions(tmp_path), steps=4, checkpoints=KEPT)
    assert command("train", recipe, "--run", run) == 1
    told = capfd.readouterr().err
    assert "the weights are not finite" in told
    assert "could not be written to incident" in told
    assert all_finite(run / "checkpoints" / "step-000002")
