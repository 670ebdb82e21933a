"""What keeps workers together and closed: nothing outlives a run; responses reach neither network nor files."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from machine import unprivileged_namespaces
from steadyrl.tasks import RewardPool, RewardRequest, TaskError
from steadyrl.tasks.environment import worker_environment

SOURCE = str(Path(__file__).parents[2] / "src")

# each way starts a process that sleeps for the given time, and returns a reward or hangs
WAYS = r"""
import multiprocessing, os, signal, subprocess, sys, threading, time

def sleeper(seconds, **options):
    return subprocess.Popen([sys.executable, "-S", "-c", f"import time; time.sleep({seconds})"], **options)

def stubborn(seconds, *signals):
    code = f"import signal, time; [signal.signal(s, signal.SIG_IGN) for s in {list(map(int, signals))}]; "
    return subprocess.Popen([sys.executable, "-S", "-c", code + f"time.sleep({seconds})"], start_new_session=True)

def daemon(seconds):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.closerange(0, 64)
            os.execv(sys.executable, [sys.executable, "-S", "-c", f"import time; time.sleep({seconds})"])
        os._exit(0)
    os.wait()

def reward(prompt, completion):
    if completion == prompt:
        return 1.0
    way, seconds = completion.split()
    if way == "child":
        sleeper(seconds)
    if way == "session":
        sleeper(seconds, start_new_session=True)
    if way == "group":
        sleeper(seconds, process_group=0)
    if way == "stubborn":
        stubborn(seconds, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    if way == "daemon":
        daemon(seconds)
    if way == "shell":
        code = f"exec {sys.executable} -S -c 'import time; time.sleep({seconds})'"
        subprocess.Popen(["sh", "-c", f"(trap '' HUP TERM; {code}) &"])
    if way == "stopped":
        os.kill(sleeper(seconds).pid, signal.SIGSTOP)
    if way == "spawned":
        multiprocessing.get_context("spawn").Process(target=time.sleep, args=(float(seconds),)).start()
    if way == "hanging":
        sleeper(seconds, start_new_session=True)
        time.sleep(60)
    if way == "threads":
        sleeper(seconds)
        threading.Thread(target=time.sleep, args=(60,)).start()
    return 1.0
"""
KINDS = ["child", "session", "group", "stubborn", "daemon", "shell", "stopped", "spawned", "hanging", "threads"]

PARENT = """
import json, sys, threading
from steadyrl.tasks import RewardPool, RewardRequest
pool = RewardPool(json.loads(sys.argv[1]), seed=0, workers=1, time_limit=30.0)
batch = [RewardRequest(split="train", index=0, completion=text) for text in json.loads(sys.argv[2])]
threading.Thread(target=pool.rewards, args=(batch,), daemon=True).start()
input()
"""
# what a system without namespaces looks like to a worker
WITHOUT_NAMESPACES = """
import steadyrl.tasks.linux as linux
def refuse(kinds):
    raise PermissionError(1, "not allowed")
linux.unshare = refuse
"""
LIKE_A_MAC = "import sys\nsys.platform = 'darwin'\n"


needs_namespaces = pytest.mark.skipif(not unprivileged_namespaces(), reason="the system allows no namespaces")


@pytest.fixture
def task(tmp_path: Path) -> dict:
    """A task verified by `mine.py`, which a test writes."""
    (tmp_path / "pairs.jsonl").write_text('{"question": "1", "answer": "1"}\n{"question": "2", "answer": "2"}\n')
    (tmp_path / "mine.py").write_text("def reward(prompt, completion):\n    return eval(completion)\n")
    return {
        "kind": "questions",
        "path": str(tmp_path / "pairs.jsonl"),
        "reward": f"{tmp_path}/mine.py:reward",
        "held_out": 1,
    }


def modified(folder: Path, code: str) -> str:
    """A PYTHONPATH whose processes run `code` as they start."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    return f"{SOURCE}:{folder}"


def commands() -> str:
    return subprocess.run(["ps", "-wweo", "args"], capture_output=True, text=True, check=True).stdout


def until(condition, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def evaluate(task: dict, *texts: str, **options) -> list:
    with RewardPool(task, seed=0, workers=1, time_limit=10, **options) as pool:
        rewards = pool.rewards([RewardRequest(split="train", index=0, completion=text) for text in texts])
    return [reward.value if reward.failure is None else reward.failure for reward in rewards]


# ---- nothing outlives the run


@pytest.mark.parametrize(
    "around", [pytest.param("", marks=needs_namespaces), pytest.param(WITHOUT_NAMESPACES)], ids=["namespaces", "sweep"]
)
@pytest.mark.parametrize("ending", ["kill -9 of the run", "kill -9 of run and guard", "SIGTERM"])
def test_no_process_of_a_verifier_outlives_the_run(task: dict, tmp_path: Path, around: str, ending: str) -> None:
    if around and ending == "kill -9 of run and guard":
        pytest.skip("without namespaces, only the guard keeps processes together")
    (tmp_path / "mine.py").write_text(WAYS)
    mark = f"6{os.getpid() % 10000}.{time.monotonic_ns() % 100000}"
    texts = [f"{kind} {mark}" for kind in sorted(KINDS, key=lambda kind: kind == "hanging")]
    environment = {**os.environ, "PYTHONPATH": modified(tmp_path / "around", around), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", PARENT, json.dumps(task), json.dumps(texts)]
    running = [kind for kind in KINDS if kind != "spawned"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as run:
        assert until(lambda: commands().count(f"time.sleep({mark})") >= len(running))
        guards = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True, check=True).stdout
        run.send_signal(signal.SIGTERM if ending == "SIGTERM" else signal.SIGKILL)
        for guard in guards.split() if ending == "kill -9 of run and guard" else ():
            os.kill(int(guard), signal.SIGKILL)
    assert until(lambda: mark not in commands())
    assert until(
        lambda: str(run.pid) not in [line.split()[-1] for line in commands().splitlines() if "tasks.worker" in line]
    )


def test_guards_leave_no_folder_behind(task: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    assert evaluate(task, "1", closed=True) == [1.0]
    assert evaluate(task, "1") == [1.0]
    assert not list((tmp_path / "scratch").iterdir())


# ---- closed workers

PROBES = {
    "network": "__import__('socket').create_connection(('127.0.0.1', {port}), 2).fileno()",
    "secret": "len(open({secret!r}).read())",
    "edit": "open({mine!r}, 'a').write('#')",
    "edit the packages": "open(__import__('json').__file__, 'a').write('')",
    "mount": "__import__('ctypes').CDLL(None).unshare(0x20000)",
    "kernel": "open('/proc/sys/kernel/hostname', 'w').write('')",
}


@pytest.fixture
def probes(task: dict, tmp_path: Path) -> dict[str, str]:
    """Expressions that reach for what is private."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key").write_text("secret")
    server = socket.create_server(("127.0.0.1", 0))
    fields = {"port": server.getsockname()[1], "secret": str(tmp_path / "private" / "key")}
    fields["mine"] = str(tmp_path / "mine.py")
    with server:
        yield {name: text.format(**fields) for name, text in PROBES.items()}


@needs_namespaces
def test_a_closed_worker_reaches_neither_network_nor_files(task: dict, tmp_path: Path, probes: dict[str, str]) -> None:
    inside = tmp_path / "own"  # only the function's folder is shown
    inside.mkdir()
    (tmp_path / "mine.py").rename(inside / "mine.py")
    task["reward"] = f"{inside}/mine.py:reward"
    probes["edit"] = probes["edit"].replace(str(tmp_path), str(inside))
    found = dict(zip(probes, evaluate(task, *probes.values(), closed=True), strict=True))
    assert found.pop("mount") == -1.0
    assert all(isinstance(failure, str) and failure.startswith("raised ") for failure in found.values()), found
    assert "unreachable" in found["network"]
    assert "Read-only" in found["edit the packages"]


def test_a_user_function_keeps_network_and_files(task: dict, probes: dict[str, str]) -> None:
    wanted = [probes[name] for name in ("network", "secret", "edit")]
    descriptor, length, written = evaluate(task, *wanted)
    assert isinstance(descriptor, float)
    assert (length, written) == (6.0, 1.0)


@needs_namespaces
def test_a_closed_worker_still_works(task: dict) -> None:
    texts = [
        "open('here', 'w').write('abc')",
        "float(len(__import__('subprocess').check_output(['echo', 'four'])))",
        "float(__import__('os').getcwd() == __import__('os').environ['HOME'])",
        "float(len(__import__('math_verify').parse('$1$')) > 0)",
        "float(__import__('tempfile').mkdtemp() != '')",
        "len(__import__('multiprocessing').get_context('spawn').Pool(1).map(abs, [1, 2]))",
    ]
    assert evaluate(task, *texts, closed=True) == [3.0, 5.0, 1.0, 1.0, 1.0, 2.0]


@needs_namespaces
def test_our_own_verifiers_are_closed(task: dict, tmp_path: Path) -> None:
    """The worker of a task of ours shows, in its own mounts, that the private folder is gone."""
    with RewardPool(
        {"kind": "chains", "min_terms": 3, "max_terms": 4, "teacher_noise": 0.0}, seed=0, workers=1, time_limit=5
    ) as pool:
        (guard,) = [worker._process.pid for worker in pool._workers]
        line = subprocess.run(["pgrep", "-P", str(guard)], capture_output=True, text=True, check=True).stdout.split()
        (worker,) = subprocess.run(["pgrep", "-P", line[0]], capture_output=True, text=True, check=True).stdout.split()
        root = Path(f"/proc/{worker}/root")
        assert not (root / str(tmp_path).lstrip("/")).exists()
        assert (root / "tmp").exists()
        assert os.readlink(f"/proc/{worker}/ns/net") != os.readlink("/proc/self/ns/net")
        assert pool.lacking == ()


# ---- environment


def test_the_environment_is_an_allow_list(task: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "VLLM_ALLOW_INSECURE_SERIALIZATION", "MINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    names = "','".join(
        ["OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "VLLM_ALLOW_INSECURE_SERIALIZATION", "MINE"]
    )
    text = f"len({{'{names}'}} & set(__import__('os').environ))"
    assert evaluate(task, text) == [0.0]
    assert evaluate(task, text, environment=("MINE", "OPENAI_API_KEY")) == [2.0]
    assert evaluate(task, "float('LC_ALL' in __import__('os').environ)") == [1.0]


def test_a_variable_that_is_not_set_is_named() -> None:
    with pytest.raises(TaskError, match=r"verifier\.environment names 'NO_SUCH_KEY', which is not set"):
        worker_environment({"PATH": "/bin"}, ["NO_SUCH_KEY"])
    kept = {"PATH": "/bin", "PYTHONHASHSEED": "0", "LC_CTYPE": "C", "OMP_NUM_THREADS": "1"}
    assert worker_environment({**kept, "SECRET": "x", "PATHS": "y"}, []) == kept


@pytest.mark.parametrize("closed", [False, True])
def test_a_run_without_home_or_working_directory(task: dict, tmp_path: Path, closed: bool) -> None:
    code = (
        "import json, os, sys\n"
        "from steadyrl.tasks import RewardPool, RewardRequest\n"
        "os.environ.pop('HOME', None); os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')\n"
        f"with RewardPool(json.loads(sys.argv[1]), seed=0, workers=1, time_limit=5, closed={closed}) as pool:\n"
        "    print(pool.rewards([RewardRequest(split='train', index=0, completion='2.5')])[0].value)\n"
    )
    command = [sys.executable, "-c", code, json.dumps(task)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "2.5\n"


def test_the_recipes_folder_is_the_working_directory(task: dict, tmp_path: Path) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "table").write_text("abc")
    assert evaluate(task, "len(open('table').read())", folder=str(folder)) == [3.0]


def test_a_recipes_folder_that_is_gone_is_told(task: dict, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    assert evaluate(task, "len(__import__('os').listdir('.'))", folder=str(tmp_path / "gone")) == [0.0]
    assert "the reward function runs in a temporary folder: [Errno 2]" in capfd.readouterr().err


# ---- systems that lack a guard


@pytest.mark.parametrize(
    ("code", "lacking"),
    [(WITHOUT_NAMESPACES, "namespaces of processes"), (LIKE_A_MAC, "namespaces of processes, a limit on memory")],
    ids=["no namespaces", "macOS"],
)
def test_a_system_that_lacks_guards_verifies_and_names_them(
    task: dict, tmp_path: Path, code: str, lacking: str
) -> None:
    program = (
        "import json, sys\n"
        "from steadyrl.tasks import RewardPool, RewardRequest\n"
        "for closed in (False, True):\n"
        "    with RewardPool(json.loads(sys.argv[1]), seed=0, workers=2, time_limit=5, closed=closed) as pool:\n"
        "        batch = [RewardRequest(split='train', index=0, completion=text) for text in ('1', '2', '1 / 0')]\n"
        "        print([reward.value for reward in pool.rewards(batch)], ', '.join(pool.lacking))\n"
    )
    environment = {**os.environ, "PYTHONPATH": modified(tmp_path / "around", code)}
    command = [sys.executable, "-c", program, json.dumps(task)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == f"[1.0, 2.0, None] {lacking}"
    assert second.startswith("[1.0, 2.0, None] namespaces of processes, a closed network, private files")
