"""A run directory is complete or absent, belongs to one process, and is never taken for what it is not."""

import errno
import fcntl
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from machine import require_namespaces
from recipes_for_tests import command, comparable, train, write_recipe
from steadyrl.recipe import load
from steadyrl.report import page
from steadyrl.run.directory import Run, RunDirectoryError
from steadyrl.run.lock import Lock, LockedError


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two steps, which nothing here changes."""
    return train(tmp_path_factory.mktemp("finished"), steps=2, checkpoints={"every": 1})


@pytest.fixture
def copy(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "copy"))


# ---- the lock

TAKE = """
import sys
from pathlib import Path
from steadyrl.run.lock import Lock
Lock(Path(sys.argv[1]))
print("taken")
"""


def taken_by_another(run: Path) -> bool:
    """Whether another process can take the lock of a run."""
    done = subprocess.run([sys.executable, "-c", TAKE, str(run)], capture_output=True, text=True, check=False)
    return done.stdout == "taken\n"


def test_an_editor_that_replaces_the_recipe_lets_no_second_trainer_in(copy):
    lock = Lock(copy)
    text = (copy / "recipe.json").read_text()
    (copy / "recipe.new").write_text(text)
    os.replace(copy / "recipe.new", copy / "recipe.json")
    assert not taken_by_another(copy)
    lock.close()
    assert taken_by_another(copy)


@pytest.mark.parametrize("code", [errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_the_file_system_cannot_lock_a_file_names_the_process(code, copy, monkeypatch, capfd):
    def unsupported(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    lock = Lock(copy)
    assert "cannot lock" in capfd.readouterr().err
    holder = copy / "lock.holder"
    assert json.loads(holder.read_text()) == {"pid": os.getpid(), "host": socket.gethostname()}
    holder.write_text(json.dumps({"pid": os.getppid(), "host": socket.gethostname()}))
    with pytest.raises(LockedError, match=f"is being trained by process {os.getppid()} on {socket.gethostname()}"):
        Lock(copy)
    holder.write_text(json.dumps({"pid": 1, "host": "another"}))
    with pytest.raises(LockedError, match=r"process 1 on another; .*delete .*lock\.holder"):
        Lock(copy)
    holder.write_text("garbage")
    with pytest.raises(LockedError, match="an unknown host"):
        Lock(copy)
    lock.close()
    assert not holder.exists()


def test_the_file_of_a_process_that_is_gone_is_replaced(copy, monkeypatch):
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for pid in (gone.pid, 10**30, -1):
        (copy / "lock.holder").write_text(json.dumps({"pid": pid, "host": socket.gethostname()}))
        lock = Lock(copy)
        assert json.loads((copy / "lock.holder").read_text())["pid"] == os.getpid()
        lock.close()


# ---- made whole


@pytest.mark.parametrize("function", ["write_atomically", "Run._open"])
def test_a_kill_while_a_run_directory_is_made_is_no_dead_end(function, tmp_path, monkeypatch):
    recipe, run = write_recipe(tmp_path, steps=1), tmp_path / "run"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"steadyrl.run.directory.{function}", killed)
        assert command("train", recipe, "--run", run) == 130
    again = ["resume", run] if run.exists() else ["train", recipe, "--run", run]
    assert command(*again) == 0


def test_a_folder_without_a_recipe_is_not_offered_for_resuming(tmp_path, capfd):
    (tmp_path / "run").mkdir()
    assert command("train", write_recipe(tmp_path), "--run", tmp_path / "run") == 2
    told = capfd.readouterr().err
    assert "exists and is not a run directory; delete it, or pass a different --run" in told
    assert "resume" not in told


def test_what_a_kill_left_half_written_is_cleared_away_at_the_start(copy):
    (copy / ".report.html.123.part").write_text("<")
    (copy / "checkpoints" / ".step-000002.part").mkdir()
    (copy / "checkpoints" / ".step-000002.part" / "state.json").write_text("{")
    assert command("resume", copy) == 0
    assert not list(copy.rglob("*.part"))


def test_a_run_whose_checkpoints_are_gone_is_not_started_anew(copy, capfd):
    shutil.rmtree(copy / "checkpoints")
    before = comparable(copy)
    assert command("resume", copy) == 2
    told = capfd.readouterr().err
    assert "has 2 steps in metrics.jsonl and no checkpoint" in told
    assert "put the checkpoints back" in told
    assert comparable(copy) == before


def test_a_copy_of_a_checkpoint_is_neither_deleted_nor_taken_for_the_newest(copy):
    shutil.copytree(copy / "checkpoints" / "step-000001", copy / "checkpoints" / "step-000002-best")
    shutil.copytree(copy / "checkpoints" / "step-000001", copy / "checkpoints" / "step-000004-old")
    text = (copy / "recipe.json").read_text().replace('"steps": 2', '"steps": 4')
    (copy / "recipe.json").write_text(text)
    assert command("resume", copy) == 0
    assert {"step-000002-best", "step-000004-old", "step-000004"} <= {p.name for p in (copy / "checkpoints").iterdir()}


def test_the_files_of_a_run_are_as_private_as_the_umask_says(tmp_path):
    before = os.umask(0o077)
    try:
        run = train(tmp_path, steps=1)
    finally:
        os.umask(before)
    open_to_others = [path for path in (run, *run.rglob("*")) if stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert open_to_others == []


# ---- what stops a run, and what does not


def test_a_report_that_cannot_be_drawn_is_a_warning(tmp_path, monkeypatch, capfd):
    def broken(*_: object) -> None:
        raise RuntimeError("no fonts")

    monkeypatch.setattr(page, "write_report", broken)
    assert command("train", write_recipe(tmp_path, steps=1), "--run", tmp_path / "run", report=True) == 0
    assert "the report was not drawn (RuntimeError: no fonts)" in capfd.readouterr().err


FULL_DISK = """
mount -t tmpfs -o size={size}k none {disk} || exit 99
{steadyrl} train {recipe} --run {disk}/run; echo "train $?"
ls -A {disk}/run/checkpoints | tr '\\n' ' '; echo
mount -o remount,size=100m {disk}
{steadyrl} resume {disk}/run; echo "resume $?"
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", [500, 1000, 1500])
def test_a_full_disk_is_one_sentence_and_status_1_and_the_run_goes_on_once_there_is_room(size, tmp_path):
    require_namespaces()
    disk = tmp_path / "disk"
    disk.mkdir()
    recipe = write_recipe(tmp_path, steps=12, checkpoints={"every": 1, "keep": 20}, evaluate={"every": 0})
    steadyrl = Path(sys.executable).with_name("steadyrl")
    script = FULL_DISK.format(size=size, disk=disk, steadyrl=steadyrl, recipe=recipe)
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert "train 1\n" in done.stdout, done
    assert "resume 0\n" in done.stdout, done
    assert "Traceback" not in done.stderr
    told = [line for line in done.stderr.splitlines() if "make room and resume" in line]
    assert len(told) == 1
    assert ".part" not in done.stdout


def test_a_run_is_not_one_of_several_processes(tmp_path, monkeypatch, capfd):
    recipe = write_recipe(tmp_path)
    for names in (
        {"WORLD_SIZE": "2"},
        {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4"},
        {"OMPI_COMM_WORLD_SIZE": "2"},
    ):
        with monkeypatch.context() as patch:
            for name, value in names.items():
                patch.setenv(name, value)
            for argv in (["train", recipe, "--run", tmp_path / "run"], ["resume", tmp_path / "run"]):
                assert command(*argv) == 2
                assert "one process trains" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "names",
    [
        {"WORLD_SIZE": "1"},
        {"WORLD_SIZE": ""},
        {"SLURM_STEP_NUM_TASKS": "4"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"},
    ],
)
def test_one_process_of_a_scheduler_trains(names, tmp_path, monkeypatch):
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    assert command("train", write_recipe(tmp_path, steps=1), "--run", tmp_path / "run") == 0


def test_a_run_directory_error_names_the_recipe(tmp_path):
    (tmp_path / "file").touch()
    recipe = load(write_recipe(tmp_path))
    with pytest.raises(RunDirectoryError, match="cannot make the run directory"):
        Run.create(tmp_path / "file" / "run", recipe, inputs={})
    with pytest.raises(RunDirectoryError, match="is not a run directory"):
        Run.create(tmp_path / "file", recipe, inputs={})


def test_a_run_that_has_taken_more_steps_than_it_is_asked_for_is_finished(copy, capfd):
    recipe = json.loads((copy / "recipe.json").read_text())
    (copy / "recipe.json").write_text(json.dumps(recipe | {"steps": recipe["steps"] - 1}))
    assert command("resume", copy) == 0
    assert "nothing was left to train" in capfd.readouterr().out


def test_a_name_that_no_file_system_takes_is_one_sentence(tmp_path, capfd):
    assert command("train", write_recipe(tmp_path), "--run", tmp_path / ("x" * 300)) == 2
    assert "File name too long" in capfd.readouterr().err


def test_the_folder_of_a_killed_making_is_deleted_and_that_of_a_living_process_is_not(tmp_path):
    gone, lives = tmp_path / ".run.999999999.part", tmp_path / f".run.{os.getppid()}.part"
    another = tmp_path / ".other.999999999.part"
    for folder in (gone, lives, another):
        folder.mkdir()
    train(tmp_path, steps=1)
    assert not gone.exists()
    assert lives.exists()
    assert another.exists()
