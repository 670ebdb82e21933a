"""A run that was killed, interrupted or damaged ends exactly as one that was left alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from processes_for_tests import train_and_die
from recipes_for_tests import TINY, coin_questions, command, comparable, merged, train, write_recipe
from steadyrl import cold_start, loop
from steadyrl.run import checkpoint
from steadyrl.run.directory import Run
from steadyrl.run.logs import read_jsonl

STEADYRL = Path(sys.executable).with_name("steadyrl")


def changes(folder: Path) -> dict:
    """Eight steps in which every update moves the weights, after a cold start of six."""
    return {
        "task": coin_questions(folder),
        "steps": 8,
        "update": {"minibatches": 2},
        "cold_start": {"batch": 8, "check_every": 3, "stages": [{"steps": 2}, {"steps": 4}]},
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 4, "schedule": "linear"},
        "evaluate": {"every": 4},
        "checkpoints": {"every": 2, "keep": 3},
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The folder of the task that all runs here share."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def undisturbed(home):
    return train(home, "undisturbed", **changes(home))


@pytest.fixture(scope="module")
def expected(undisturbed):
    return comparable(undisturbed)


@pytest.fixture
def copy(undisturbed, tmp_path):
    """A finished run of one's own."""
    return Path(shutil.copytree(undisturbed, tmp_path / "copy"))


def names(run: Path) -> list[str]:
    return [path.name for path in checkpoint.listed(run / "checkpoints")]


# ---- kill -9

MOMENTS = {
    "in the cold start": ("steadyrl.cold_start:_imitate", 3, []),
    "within the first checkpoint": ("steadyrl.run.checkpoint:_moments", 1, []),
    "between the updates of a step": ("steadyrl.training.trainer:LocalTrainer.update", 6, [0, 2]),
    "before a step is written down": ("steadyrl.run.directory:Run.log", 5, [0, 2, 4]),
    "before an evaluation is written down": ("steadyrl.run.directory:Run.log_evaluation", 2, [0, 2]),
    "within a later checkpoint": ("steadyrl.run.checkpoint:_manifest", 4, [0, 2, 4]),
    "before old checkpoints are dropped": ("steadyrl.run.checkpoint:prune", 4, [0, 2, 4, 6]),
}
"""A function, the number of the call that a kill comes before, and the steps whose checkpoints are there then."""


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_resumes_to_the_same_end(moment, home, expected, tmp_path):
    place, call, kept = MOMENTS[moment]
    run = tmp_path / "run"
    recipe = write_recipe(tmp_path, **changes(home))
    die(["train", str(recipe), "--run", str(run)], place, call)
    assert names(run) == [f"step-{step:06d}" for step in kept]
    assert command("resume", run) == 0
    assert comparable(run) == expected
    assert names(run) == ["step-000004", "step-000006", "step-000008"]
    assert not list(run.rglob("*.part"))


def die(argv: list[str], place: str, call: int) -> None:
    """Run a command in a process of its own, which kills itself by SIGKILL at that call of a function."""
    context = get_context("forkserver")  # imports torch once for all of them, and has never used it
    context.set_forkserver_preload(["processes_for_tests", "steadyrl.loop", "steadyrl.parts", "steadyrl.run"])
    process = context.Process(target=train_and_die, args=(argv, place, call))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


def test_a_run_killed_twice_and_killed_again_in_its_resumption_ends_the_same(home, expected, tmp_path):
    run = tmp_path / "run"
    recipe = write_recipe(tmp_path, **changes(home))
    die(["train", str(recipe), "--run", str(run)], "steadyrl.training.trainer:LocalTrainer.update", 7)
    die(["resume", str(run)], "steadyrl.run.checkpoint:_manifest", 1)
    die(["resume", str(run)], "steadyrl.training.trainer:LocalTrainer.update", 5)
    assert names(run) == ["step-000000", "step-000002", "step-000004"]
    assert command("resume", run) == 0
    assert comparable(run) == expected


# ---- real processes: the installed command, and signals from outside


@pytest.fixture
def started(home, tmp_path):
    """`steadyrl train` in the background: the process and its run directory."""
    run = tmp_path / "run"
    recipe = write_recipe(tmp_path, **changes(home))
    process = start(["train", str(recipe), "--run", str(run)])
    yield process, run
    process.kill()
    process.wait()


def start(argv: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen([str(STEADYRL), *argv], env=environment, **pipes)


def wait_for_lines(path: Path, count: int, process: subprocess.Popen) -> None:
    until = time.monotonic() + 90
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, f"{path} is not growing"
        time.sleep(0.002)


@pytest.mark.slow
def test_a_kill_from_outside(started, expected):
    process, run = started
    wait_for_lines(run / "metrics.jsonl", 3, process)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    assert len(read_jsonl(run / "metrics.jsonl")) < 8
    again = start(["resume", str(run)])
    out, _ = again.communicate(timeout=120)
    assert again.returncode == 0
    assert f"resuming {run}" in out
    assert comparable(run) == expected


@pytest.mark.slow
def test_one_interrupt_stops_after_the_step_and_the_run_can_go_on(started, expected):
    process, run = started
    wait_for_lines(run / "metrics.jsonl", 1, process)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopping after this step; press Ctrl-C again to stop at once" in err
    assert "Traceback" not in err
    rows = read_jsonl(run / "metrics.jsonl")
    assert 1 <= len(rows) < 8
    assert names(run)[-1] == f"step-{len(rows):06d}"
    assert "the run is in" in out
    assert f"stopped at step {len(rows)} of 8; continue with `steadyrl resume {run}`" in err
    assert command("resume", run) == 0
    assert comparable(run) == expected


def interrupt(monkeypatch, owner: object, name: str, call: int, sent: list[int]) -> None:
    """Send signals to this process at a call of a function."""
    original, count = getattr(owner, name), 0

    def interrupted(*args, **kwargs):
        nonlocal count
        count += 1
        if count == call:
            for one in sent:
                os.kill(os.getpid(), one)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, interrupted)


def test_one_interrupt_stops_the_cold_start_which_begins_anew(home, expected, tmp_path, monkeypatch, capfd):
    """There is no checkpoint to stop at."""
    interrupt(monkeypatch, cold_start, "_imitate", 3, [signal.SIGINT])
    run = tmp_path / "run"
    assert command("train", write_recipe(tmp_path, **changes(home)), "--run", run) == 130
    assert "interrupted" in capfd.readouterr().err
    assert [row["step"] for row in read_jsonl(run / "cold_start.jsonl")] == [1, 2, 3]
    monkeypatch.undo()
    assert command("resume", run) == 0
    assert comparable(run) == expected


@pytest.mark.parametrize("one", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_asks_for_a_stop_after_the_step(one, home, expected, tmp_path, monkeypatch, capfd):
    """The same as from outside, at a known step, and without a process of its own."""
    interrupt(monkeypatch, loop, "global_step", 3, [one])
    before, run = signal.getsignal(one), tmp_path / "run"
    assert command("train", write_recipe(tmp_path, **changes(home)), "--run", run) == 128 + one
    assert f"stopped at step 3 of 8; continue with `steadyrl resume {run}`" in capfd.readouterr().err
    assert signal.getsignal(one) is before
    assert names(run)[-1] == "step-000003"
    assert {row["step"] for row in read_jsonl(run / "eval.jsonl")} == {0}
    monkeypatch.undo()
    assert command("resume", run) == 0
    assert comparable(run) == expected


def test_a_signal_in_the_last_step_changes_nothing(home, expected, tmp_path, monkeypatch):
    interrupt(monkeypatch, loop, "global_step", 8, [signal.SIGTERM])
    assert comparable(train(tmp_path, **changes(home))) == expected


@pytest.mark.parametrize("one", [signal.SIGINT, signal.SIGTERM])
def test_two_signals_stop_at_once_and_leave_the_newest_checkpoint(one, home, expected, tmp_path, monkeypatch, capfd):
    interrupt(monkeypatch, loop, "global_step", 4, [one, one])
    run = tmp_path / "run"
    assert command("train", write_recipe(tmp_path, **changes(home)), "--run", run) == 128 + one
    assert "interrupted; what was saved is intact" in capfd.readouterr().err
    assert names(run) == ["step-000000", "step-000002"]
    assert [row["step"] for row in read_jsonl(run / "metrics.jsonl")] == [1, 2, 3]
    monkeypatch.undo()
    assert command("resume", run) == 0
    assert comparable(run) == expected


# ---- damage


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("model/model.safetensors", "flip"),
        ("optimizer.safetensors", "cut"),
        ("state.json", "remove"),
        ("manifest.json", "cut"),
        ("model/config.json", "flip"),
    ],
)
def test_a_damaged_newest_checkpoint_is_refused_and_the_one_before_offered(file, damage, copy, capfd):
    newest = copy / "checkpoints" / "step-000008"
    hurt(newest / file, damage)
    before = comparable(copy)
    assert command("resume", copy) == 2
    err = capfd.readouterr().err
    assert f"{newest} is damaged: {file}" in err
    assert "step-000006 is intact: resume with --checkpoint step-000006, or name its path" in err
    assert comparable(copy) == before
    assert names(copy) == ["step-000004", "step-000006", "step-000008"]


def hurt(path: Path, damage: str) -> None:
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.unlink()


@pytest.mark.parametrize("name", ["step-000006", "step-000004"])
def test_a_run_goes_on_from_an_earlier_checkpoint_to_the_same_end(name, copy, expected, capfd):
    hurt(copy / "checkpoints" / "step-000008" / "optimizer.safetensors", "cut")
    assert command("resume", copy, "--checkpoint", name) == 0
    assert "nothing was left to train" not in capfd.readouterr().out
    assert comparable(copy) == expected
    assert names(copy)[-1] == "step-000008"
    checkpoint.verify(copy / "checkpoints" / "step-000008")


@pytest.mark.parametrize("moment", ["checkpoint.drop_after", "logs.MetricsLog.truncate"])
def test_a_kill_while_going_back_loses_no_line(moment, copy, expected, monkeypatch):
    """The newer checkpoints go before the lines that belong to them: the next start cannot skip over a gap."""

    def killed(*args) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"steadyrl.run.{moment}", killed)
        assert command("resume", copy, "--checkpoint", "step-000004") == 130
    assert command("resume", copy) == 0
    assert comparable(copy) == expected


def test_two_damaged_checkpoints_offer_the_third(copy, capfd):
    hurt(copy / "checkpoints" / "step-000008" / "state.json", "remove")
    hurt(copy / "checkpoints" / "step-000006" / "optimizer.safetensors", "flip")
    assert command("resume", copy) == 2
    assert "resume with --checkpoint step-000004" in capfd.readouterr().err
    for subcommand in ("eval", "gap"):
        assert command(subcommand, copy) == 2
        assert f"{copy / 'checkpoints' / 'step-000004'} is intact" in capfd.readouterr().err


def test_an_unknown_checkpoint_is_refused_with_the_known_ones(copy, capfd):
    assert command("resume", copy, "--checkpoint", "step-000005") == 2
    err = capfd.readouterr().err
    assert "has no checkpoint step-000005" in err
    assert "step-000004" in err


def test_a_checkpoint_of_another_model_is_refused(copy, capfd):
    recipe = json.loads((copy / "recipe.json").read_text())
    recipe["model"]["config"]["hidden_size"] = 48
    (copy / "recipe.json").write_text(json.dumps(recipe))
    assert command("resume", copy) == 2
    assert "belongs to another model" in capfd.readouterr().err


# ---- the ends


def test_resuming_a_finished_run_is_harmless_and_says_so(copy, expected, capfd):
    assert command("resume", copy) == 0
    assert "all 8 steps had been taken; nothing was left to train" in capfd.readouterr().out
    assert comparable(copy) == expected
    assert names(copy) == ["step-000004", "step-000006", "step-000008"]


def test_a_run_that_is_being_trained_is_left_to_it(copy, capfd):
    here = Run.reopen(copy)
    assert command("resume", copy) == 2
    assert "is being trained by another process" in capfd.readouterr().err
    here.close()
    assert command("resume", copy) == 0


def test_a_half_written_last_line_is_dropped(copy, expected):
    shutil.rmtree(copy / "checkpoints" / "step-000008")
    for name in ("metrics", "eval", "samples"):
        path = copy / f"{name}.jsonl"
        path.write_bytes(path.read_bytes()[:-20])
    assert command("resume", copy) == 0
    assert comparable(copy) == expected


def test_tied_embeddings_and_bfloat16_resume(home, tmp_path):
    """Weights that are saved once and held twice, and moments in another type than their counter."""
    config = merged(changes(home), {"steps": 4})
    fields = TINY["model"]["config"] | {"tie_word_embeddings": True}
    tied = {"model": {"config": fields}, "runtime": {"dtype": "bfloat16"}}
    run = train(tmp_path, **merged(config, tied))
    whole = comparable(run)
    assert command("resume", run, "--checkpoint", "step-000002") == 0
    assert comparable(run) == whole


@pytest.mark.parametrize("what", ["empty", "missing"])
def test_a_folder_that_is_no_run_is_refused(what, tmp_path, capfd):
    folder = tmp_path / "folder"
    if what == "empty":
        folder.mkdir()
    assert command("resume", folder) == 2
    assert f"{folder} is not a run directory: it has no recipe.json" in capfd.readouterr().err
    assert folder.exists() == (what == "empty")
    assert not folder.exists() or not list(folder.iterdir())
