import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from steadyrl.tasks import Reward, RewardPool, RewardRequest, TaskError, build_task

CHAINS = {"kind": "chains", "min_terms": 3, "max_terms": 8, "teacher_noise": 0.0}

# what the completion says, the function does
FUNCTION = r"""
import os, re, subprocess, sys, time

def reward(prompt, completion):
    if completion == "raise":
        raise ValueError("no verdict")
    if completion == "hang":
        time.sleep(60)
    if completion == "hang in C":
        re.fullmatch("(a+)+b", "a" * 40)
    if completion.startswith("sleep "):
        subprocess.run(completion.split())
    if completion == "die":
        os._exit(3)
    if completion == "exit":
        sys.exit("enough")
    if completion == "interrupt":
        raise KeyboardInterrupt
    if completion == "fork":
        os.fork()
        return 2.0
    if completion == "fork and exit":
        if os.fork() == 0:
            sys.exit(0)
        return 3.0
    if completion == "fork and raise":
        if os.fork() == 0:
            raise ValueError("in the child")
        return 4.0
    if completion == "garbage":
        for descriptor in range(3, 20):
            try:
                os.write(descriptor, b'nonsense\n[1.0, null]\n{"id": 999, "reward": 9.0}\n{"id": 0}\n[[[\n')
            except OSError:
                pass
        return 5.0
    if completion == "die once":
        marker = __file__ + ".died"
        if not os.path.exists(marker):
            open(marker, "w").close()
            os._exit(7)
        return 6.0
    if completion == "die later":
        import threading
        threading.Timer(0.15, os._exit, (9,)).start()
        return 7.0
    if completion == "wait":
        time.sleep(0.4)
        return 8.0
    if completion == "memory":
        return float(len(bytearray(3 << 30)))
    if completion == "big file":
        with open(__file__ + ".big", "wb") as file:
            file.truncate(1 << 40)
    if completion == "print":
        print("[1.0, null]")
        os.system("echo '[1.0, null]'")
        os.write(1, b"[1.0, null]\n")
        return 0.25
    if completion == "read":
        return float(len(sys.stdin.read()))
    if completion.startswith("return "):
        return eval(completion.removeprefix("return "))
    return len(completion)
"""


def requests(completions: Sequence[str]) -> list[RewardRequest]:
    return [RewardRequest(split="train", index=0, completion=completion) for completion in completions]


def rewarded(*rewards: float) -> list[Reward]:
    return [Reward(value=reward, failure=None) for reward in rewards]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """A task whose reward is the function above."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # a guard that is killed leaves its folder behind
    (tmp_path / "mine.py").write_text(FUNCTION)
    (tmp_path / "pairs.jsonl").write_text('{"q": "1", "a": "1"}\n{"q": "2", "a": "2"}\n')
    fields = {"split": "train", "question_column": "q", "answer_column": "a", "held_out": 1}
    return {
        "kind": "questions",
        "path": str(tmp_path / "pairs.jsonl"),
        "reward": f"{tmp_path}/mine.py:reward",
        **fields,
    }


def pids(pool: RewardPool) -> list[int]:
    return [worker._process.pid for worker in pool._workers]


def is_gone(pid: int) -> bool:
    """Whether the process ends within a few seconds; one that nobody has waited for counts as ended."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_a_worker_verifies_like_the_task() -> None:
    task = build_task("chains", seed=4, parameters=CHAINS)
    batch = [
        RewardRequest(split=split, index=index, completion=completion)
        for index in range(30)
        for split in ("train", "held_out")
        for completion in (task.example(split, index).solution, ">0")
    ]
    expected = [task.reward(request.split, request.index, request.completion) for request in batch]
    with RewardPool(CHAINS, seed=4, workers=1, time_limit=5) as pool:
        assert pool.rewards(batch) == rewarded(*expected)
        assert pool.rewards([]) == []
    assert 0 < sum(expected) < len(expected)


def test_order_is_kept_with_two_workers(own: dict) -> None:
    lengths = [7 * n % 501 for n in range(501)]
    with RewardPool(own, seed=0, workers=2, time_limit=5) as pool:
        assert pool.rewards(requests(["x" * length for length in lengths])) == rewarded(*lengths)


def test_big_and_strange_completions_go_through(own: dict) -> None:
    completions = ["x" * 1_000_000, "line\nline\r\n\u2028", "\ud800 half a surrogate", "😀\0"] * 5
    with RewardPool(own, seed=0, workers=1, time_limit=20) as pool:
        assert pool.rewards(requests(completions)) == rewarded(*map(len, completions))


@pytest.mark.parametrize(
    ("completion", "failure"),
    [
        ("raise", "raised ValueError: no verdict"),
        ("die", "worker died: it ended with exit code 3"),
        ("return os.kill(os.getpid(), 11)", "worker died: it was killed by SIGSEGV"),
        ("exit", "called sys.exit('enough')"),
        ("interrupt", "raised KeyboardInterrupt: "),
        ("return float('nan')", "returned nan"),
        ("return -float('inf')", "returned -inf, which is not finite in float32"),
        ("return 1e39", "returned 1e+39, which is not finite in float32"),
        ("return -3.5e38", "returned -3.5e+38, which is not finite in float32"),
        ("return 'abc'", "returned 'abc', not a number"),
        ("return '1'", "returned '1', not a number"),
        ("return None", "returned None, not a number"),
        ("return 10**39", f"returned {10**39}, which is not finite in float32"),
        ("return 10**5000", "returned a value of type int, which is not finite in float32"),
        ("return __import__('decimal').Decimal('1e400')", "returned Decimal('1E+400'), which is not finite in float32"),
        ("big file", "raised OSError: [Errno 27] File too large"),
    ],
)
def test_a_failure_costs_one_response(own: dict, completion: str, failure: str) -> None:
    batch = requests(["x", "xx", completion, "xxx", completion, "xxxx"])
    failed = Reward(value=None, failure=failure)
    with RewardPool(own, seed=0, workers=1, time_limit=5) as pool:
        one, two, first, three, second, four = pool.rewards(batch)
    assert [one, two, three, four] == rewarded(1, 2, 3, 4)
    assert first == second == failed


def test_a_worker_that_forks_shifts_no_reward(own: dict) -> None:
    batch = requests(["x", "fork", "xx", "fork and exit", "xxx", "fork and raise", "xxxx"] * 3)
    with RewardPool(own, seed=0, workers=1, time_limit=5) as pool:
        assert pool.rewards(batch) == rewarded(*[1, 2, 2, 3, 3, 4, 4] * 3)


def test_lines_that_answer_no_request_are_left_out(own: dict) -> None:
    with RewardPool(own, seed=0, workers=1, time_limit=5) as pool:
        assert pool.rewards(requests(["x", "garbage", "xx", "xxx"])) == rewarded(1, 5, 2, 3)


def test_a_worker_that_dies_once_costs_nothing(own: dict) -> None:
    with RewardPool(own, seed=0, workers=1, time_limit=5) as pool:
        assert pool.rewards(requests(["x", "die once", "xx"])) == rewarded(1, 6, 2)


def test_a_response_pays_for_no_other_that_killed_its_worker_later(own: dict) -> None:
    with RewardPool(own, seed=0, workers=1, time_limit=5) as pool:
        assert pool.rewards(requests(["die later", "wait", "xx"])) == rewarded(7, 8, 2)


@pytest.mark.parametrize("stopped", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_dies_while_idle_costs_nothing(own: dict, stopped: signal.Signals) -> None:
    with RewardPool(own, seed=0, workers=2, time_limit=5) as pool:
        os.kill(pids(pool)[0], stopped)
        time.sleep(0.2)
        assert pool.rewards(requests(["x", "xx", "xxx"])) == rewarded(1, 2, 3)


def test_a_worker_that_dies_as_it_is_handed_work_costs_nothing(own: dict) -> None:
    with RewardPool(own, seed=0, workers=1, time_limit=5) as pool:
        os.kill(pids(pool)[0], signal.SIGKILL)
        assert pool.rewards(requests(["x", "xx", "xxx"])) == rewarded(1, 2, 3)


def test_memory_is_limited(own: dict) -> None:
    with RewardPool(own, seed=0, workers=1, time_limit=5, memory_gib=1.0) as pool:
        one, two = pool.rewards(requests(["memory", "x"]))
    assert one.failure == "raised MemoryError; a worker may use verifier.memory_gib = 1"
    assert two == rewarded(1)[0]


@pytest.mark.parametrize("time_limit", [1e10, 1e300])
def test_a_limit_of_centuries(own: dict, time_limit: float) -> None:
    with RewardPool(own, seed=0, workers=1, time_limit=time_limit) as pool:
        assert pool.rewards(requests(["x", "xx"])) == rewarded(1, 2)


def test_more_than_a_thousand_descriptors(own: dict) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most != resource.RLIM_INFINITY and most < 1200:
        pytest.skip("the system allows fewer descriptors")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1200, before[1]))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1050)]
    try:
        with RewardPool(own, seed=0, workers=1, time_limit=5) as pool:
            assert pool.rewards(requests(["x", "xx"])) == rewarded(1, 2)
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_answers_that_arrive_in_pieces(own: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    read = os.read
    monkeypatch.setattr(os, "read", lambda descriptor, count: read(descriptor, min(count, 7)))
    with RewardPool(own, seed=0, workers=1, time_limit=5) as pool:
        assert pool.rewards(requests(["x" * 1000, "xx"] * 20)) == rewarded(*[1000, 2] * 20)


def test_any_finite_number_is_a_reward(own: dict) -> None:
    batch = requests(["return True", "return -3", "return 2.5", "return __import__('numpy').float32(0.5)"])
    with RewardPool(own, seed=0, workers=1, time_limit=20) as pool:
        assert pool.rewards(batch) == rewarded(1.0, -3.0, 2.5, 0.5)


@pytest.mark.parametrize("completion", ["hang", "hang in C"])
def test_a_hanging_verifier_is_stopped(own: dict, completion: str) -> None:
    with RewardPool(own, seed=0, workers=2, time_limit=0.5) as pool:
        before = pids(pool)
        began = time.monotonic()
        rewards = pool.rewards(requests(["x"] * 40 + [completion] + ["xx"] * 40))
        assert 0.5 <= time.monotonic() - began < 4
        assert rewards[40] == Reward(value=None, failure="took longer than 0.5 s")
        assert rewards[:40] + rewards[41:] == rewarded(*[1] * 40, *[2] * 40)
        assert len(set(before) & set(pids(pool))) == 1
        assert all(is_gone(pid) for pid in set(before) - set(pids(pool)))


def test_the_time_limit_is_each_responses_own(own: dict) -> None:
    batch = requests(["return __import__('time').sleep(0.2) or 1"] * 6)
    with RewardPool(own, seed=0, workers=1, time_limit=0.6) as pool:
        assert pool.rewards(batch) == rewarded(*[1] * 6)


def test_children_of_a_hanging_verifier_are_stopped(own: dict) -> None:
    with RewardPool(own, seed=0, workers=1, time_limit=0.5) as pool:
        pool.rewards(requests([f"sleep 61.{os.getpid()}"]))
    commands = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert f"sleep 61.{os.getpid()}" not in commands.splitlines()


def test_printing_and_reading_do_not_disturb(own: dict) -> None:
    with RewardPool(own, seed=0, workers=1, time_limit=5) as pool:
        assert pool.rewards(requests(["print", "xxx", "read", "x"])) == rewarded(0.25, 3, 0, 1)


def test_a_pool_survives_an_interrupted_call(own: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    with RewardPool(own, seed=0, workers=2, time_limit=5) as pool:
        with monkeypatch.context() as patched:
            patched.setattr(pool, "_collect", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                pool.rewards(requests(["x"] * 10))
        assert pool.rewards(requests(["xx", "xxx"])) == rewarded(2, 3)


def _interrupt(batch: object) -> None:
    raise KeyboardInterrupt


def test_a_task_that_cannot_be_built_is_told_at_once(own: dict, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("{\n")
    with pytest.raises(TaskError, match="line 1 is not JSON"):
        RewardPool(own, seed=0, workers=2, time_limit=5)


def test_a_file_that_cannot_be_imported(own: dict, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("1 / 0")
    with pytest.raises(TaskError, match="loading it raised ZeroDivisionError"):
        RewardPool(own, seed=0, workers=1, time_limit=5)


def test_workers_end_with_the_pool(own: dict) -> None:
    with RewardPool(own, seed=0, workers=2, time_limit=5) as pool:
        workers = pids(pool)
        assert not any(Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z" for pid in workers)
    assert all(is_gone(pid) for pid in workers)
    with pytest.raises(RuntimeError, match="closed"):
        pool.rewards(requests(["x"]))


PARENT = """
import json, sys
from steadyrl.tasks import RewardPool, RewardRequest
pool = RewardPool(json.loads(sys.argv[1]), seed=0, workers=1, time_limit=float(sys.argv[3]))
print(pool._workers[0]._process.pid, flush=True)
pool.rewards([RewardRequest(split="train", index=0, completion=sys.argv[2])])
input()
"""


@pytest.mark.parametrize("completion", ["x", "hang in C"])
def test_workers_end_with_a_parent_that_is_killed(own: dict, completion: str) -> None:
    """Even one that hangs in C code, which can notice nothing."""
    command = [sys.executable, "-c", PARENT, json.dumps(own), completion, "0.8"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        time.sleep(0.3)
        parent.send_signal(signal.SIGKILL)
    assert is_gone(worker)


def test_control_c_does_not_reach_the_workers(own: dict) -> None:
    with RewardPool(own, seed=0, workers=1, time_limit=5) as pool:
        assert os.getpgid(pids(pool)[0]) != os.getpgid(0)
        assert os.getsid(pids(pool)[0]) != os.getsid(0)
