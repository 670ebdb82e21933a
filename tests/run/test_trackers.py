"""Trackers get every number, and none of them ever stops a training."""

import math
import sys
from pathlib import Path

import pytest

from recipes_for_tests import command, write_recipe
from steadyrl.run.logs import read_jsonl
from steadyrl.run.trackers import MissingTracker, TrackerError, forget_curves, open_trackers


class FakeTracker:
    """What `wandb` and `trackio` have in common."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def init(self, **options: object) -> "FakeTracker":
        self.calls.append(("init", options))
        return self

    def log(self, row: dict, step: int) -> None:
        self.calls.append(("log", step, row))

    def finish(self) -> None:
        self.calls.append(("finish",))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_trackers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = FakeTracker()
    module.__name__ = name  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]
    for step in (1, 2):  # a run, resumed
        [tracker] = open_trackers([name], tmp_path, {"seed": 1})
        tracker.log(step, {"reward/mean": 0.5, "mismatch/k1": math.nan, "weight/max": None})
        tracker.close()
    opened = [call[1] for call in module.calls if call[0] == "init"]
    assert opened[0] == opened[1]
    assert opened[0]["config"] == {"seed": 1}
    assert opened[0]["name"].startswith(tmp_path.name)
    assert ("id" in opened[0]) == (name == "wandb")
    assert module.calls[1] == ("log", 1, {"reward/mean": 0.5})
    assert module.calls[-1] == ("finish",)
    forget_curves(tmp_path)
    open_trackers([name], tmp_path, {})
    key = "id" if name == "wandb" else "name"
    assert module.calls[-1][1][key] != opened[0][key]
    forget_curves(tmp_path / "none")


def test_a_missing_package_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = FakeTracker()
    monkeypatch.setitem(sys.modules, "trackio", module)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "wandb", None)  # type: ignore[arg-type]
    with pytest.raises(MissingTracker, match=r'pip install "steadyrl\[wandb\]"'):
        open_trackers(["trackio", "wandb"], tmp_path, {})
    assert module.calls == [], "trackio was opened although the run cannot start"


def test_unknown_trackers_are_refused(tmp_path: Path) -> None:
    assert open_trackers([], tmp_path, {}) == []
    with pytest.raises(ValueError, match="'csv' is not one of tensorboard, trackio, wandb"):
        open_trackers(["csv"], tmp_path, {})


def test_tensorboard_writes(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for first in (1, 2):  # resumed after step 1: steps 2 and 3 are repeated
        [tracker] = open_trackers(["tensorboard"], tmp_path, {"seed": 1})
        for step in range(first, 4):
            tracker.log(step, {"reward/mean": step / 2 + first, "mismatch/k1": math.nan})
        tracker.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["reward/mean"]
    assert [(event.step, event.value) for event in events.Scalars("reward/mean")] == [
        (1, 1.5),
        (2, 3.0),
        (3, 3.5),
    ]


def test_wandb_gets_name_group_and_tags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = FakeTracker()
    module.__name__ = "wandb"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)  # type: ignore[arg-type]
    run = tmp_path / "sweep" / "lr-1e-4"
    run.mkdir(parents=True)
    recipe = {
        "objective": {"name": "grpo"},
        "update": {"replay": "R3"},
        "engine": {"kind": "local", "precision": "fp8"},
    }
    open_trackers(["wandb"], run, recipe)
    options = module.calls[0][1]
    assert options["name"] == "lr-1e-4"
    assert options["group"] == "sweep"
    assert options["tags"] == ["grpo", "R3", "local", "fp8"]


LOGGED_OUT = """
class UsageError(Exception): pass
def init(**options): raise UsageError("api_key not configured")
"""
FAILS_LATER = """
class Run:
    calls = 0
    def log(self, row, step):
        Run.calls += 1
        if step in BAD: raise ConnectionError("the network is gone")
    def finish(self):
        if CLOSING: raise TimeoutError("nobody answers")
def init(**options): return Run()
"""


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a module in the place of W&B, written as a file of its own."""

    def install(source: str) -> None:
        folder = tmp_path / "fake"
        folder.mkdir()
        (folder / "wandb.py").write_text(source)
        monkeypatch.syspath_prepend(folder)
        monkeypatch.delitem(sys.modules, "wandb", raising=False)

    yield install
    sys.modules.pop("wandb", None)


def test_a_tracker_without_a_login_is_refused_and_leaves_no_run_directory(wandb, tmp_path, capfd) -> None:
    wandb(LOGGED_OUT)
    recipe = write_recipe(tmp_path, trackers=["wandb"], steps=1)
    assert command("train", recipe, "--run", tmp_path / "runs" / "one") == 2
    told = capfd.readouterr().err
    assert "trackers: 'wandb' cannot be opened (UsageError: api_key not configured)" in told
    assert "WANDB_MODE=offline" in told
    assert "leave it out" in told
    assert not list((tmp_path / "runs").iterdir())


def test_a_tracker_that_fails_later_is_told_once_and_counted(wandb, tmp_path, capfd) -> None:
    wandb(f"BAD, CLOSING = {{2, 3}}, True\n{FAILS_LATER}")
    recipe = write_recipe(tmp_path, trackers=["wandb"], steps=4)
    assert command("train", recipe, "--run", tmp_path / "run") == 0
    told = capfd.readouterr().err
    assert told.count("wandb failed at step") == 1
    assert "wandb failed at step 2 (ConnectionError: the network is gone)" in told
    assert "wandb failed as it was closed: TimeoutError: nobody answers" in told
    # the evaluation of step 2 failed as well as the steps 2 and 3, and the end
    assert "wandb failed 4 time(s)" in told
    assert len(read_jsonl(tmp_path / "run" / "metrics.jsonl")) == 4


def test_a_resumed_run_keeps_its_directory_when_the_tracker_refuses(wandb, tmp_path, capfd) -> None:
    run = tmp_path / "run"
    assert command("train", write_recipe(tmp_path, steps=1), "--run", run) == 0
    text = (run / "recipe.json").read_text().replace('"trackers": []', '"trackers": ["wandb"]')
    (run / "recipe.json").write_text(text)
    wandb(LOGGED_OUT)
    assert command("resume", run) == 2
    assert (run / "checkpoints").is_dir()
    with pytest.raises(TrackerError):
        open_trackers(["wandb"], run, {})


def test_a_tracker_that_refuses_leaves_no_other_open(wandb, tmp_path, monkeypatch, capfd) -> None:
    wandb(LOGGED_OUT)
    module = FakeTracker()
    monkeypatch.setitem(sys.modules, "trackio", module)  # type: ignore[arg-type]
    module.__name__ = "trackio"  # type: ignore[attr-defined]
    with pytest.raises(TrackerError):
        open_trackers(["trackio", "wandb"], tmp_path, {})
    assert [call[0] for call in module.calls] == ["init", "finish"]
