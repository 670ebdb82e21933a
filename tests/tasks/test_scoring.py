import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from steadyrl.tasks import Score, ScorePool, ScoreRequest, TaskError, build_task

CHAINS = {"kind": "chains", "min_terms": 3, "max_terms": 8, "teacher_noise": 0.0}

# what the completion says, the function does
FUNCTION = r"""
import os, re, subprocess, sys, time

def score(prompt, completion):
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


def requests(completions: Sequence[str]) -> list[ScoreRequest]:
    return [ScoreRequest(split="train", index=0, completion=completion) for completion in completions]


def rewarded(*rewards: float) -> list[Score]:
    return [Score(reward=reward, failure=None) for reward in rewards]


@pytest.fixture
def own(tmp_path: Path) -> dict:
    """A task whose score is the function above."""
    (tmp_path / "mine.py").write_text(FUNCTION)
    (tmp_path / "pairs.jsonl").write_text('{"q": "1", "a": "1"}\n{"q": "2", "a": "2"}\n')
    fields = {"split": "train", "question_column": "q", "answer_column": "a", "held_out": 1}
    return {
        "kind": "questions",
        "path": str(tmp_path / "pairs.jsonl"),
        "score": f"{tmp_path}/mine.py:score",
        **fields,
    }


def pids(pool: ScorePool) -> list[int]:
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


def test_a_worker_scores_like_the_task() -> None:
    task = build_task("chains", seed=4, parameters=CHAINS)
    batch = [
        ScoreRequest(split=split, index=index, completion=completion)
        for index in range(30)
        for split in ("train", "held_out")
        for completion in (task.example(split, index).solution, ">0")
    ]
    expected = [task.score(request.split, request.index, request.completion) for request in batch]
    with ScorePool(CHAINS, seed=4, workers=1, time_limit=5) as pool:
        assert pool.score(batch) == rewarded(*expected)
        assert pool.score([]) == []
    assert 0 < sum(expected) < len(expected)


def test_order_is_kept_with_two_workers(own: dict) -> None:
    lengths = [7 * n % 501 for n in range(501)]
    with ScorePool(own, seed=0, workers=2, time_limit=5) as pool:
        assert pool.score(requests(["x" * length for length in lengths])) == rewarded(*lengths)


def test_big_and_strange_completions_go_through(own: dict) -> None:
    completions = ["x" * 1_000_000, "line\nline\r\n\u2028", "\ud800 half a surrogate", "😀\0"] * 5
    with ScorePool(own, seed=0, workers=1, time_limit=20) as pool:
        assert pool.score(requests(completions)) == rewarded(*map(len, completions))


@pytest.mark.parametrize(
    ("completion", "failure"),
    [
        ("raise", "raised ValueError: no verdict"),
        ("die", "worker died"),
        ("exit", "worker died"),
        ("return float('nan')", "returned nan"),
        ("return -float('inf')", "returned -inf"),
        ("return 'abc'", "returned 'abc', not a number"),
        ("return None", "returned None, not a number"),
        ("return 10**400", "raised OverflowError: int too large to convert to float"),
    ],
)
def test_a_failure_costs_one_response(own: dict, completion: str, failure: str) -> None:
    batch = requests(["x", "xx", completion, "xxx", completion, "xxxx"])
    failed = Score(reward=None, failure=failure)
    with ScorePool(own, seed=0, workers=1, time_limit=5) as pool:
        one, two, first, three, second, four = pool.score(batch)
    assert [one, two, three, four] == rewarded(1, 2, 3, 4)
    assert first == second == failed


def test_answers_that_arrive_in_pieces(own: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    read = os.read
    monkeypatch.setattr(os, "read", lambda descriptor, count: read(descriptor, min(count, 7)))
    with ScorePool(own, seed=0, workers=1, time_limit=5) as pool:
        assert pool.score(requests(["x" * 1000, "xx"] * 20)) == rewarded(*[1000, 2] * 20)


def test_any_finite_number_is_a_reward(own: dict) -> None:
    batch = requests(["return True", "return -3", "return 2.5", "return __import__('numpy').float32(0.5)"])
    with ScorePool(own, seed=0, workers=1, time_limit=5) as pool:
        assert pool.score(batch) == rewarded(1.0, -3.0, 2.5, 0.5)


@pytest.mark.parametrize("completion", ["hang", "hang in C"])
def test_a_hanging_score_is_stopped(own: dict, completion: str) -> None:
    with ScorePool(own, seed=0, workers=2, time_limit=0.5) as pool:
        before = pids(pool)
        began = time.monotonic()
        scores = pool.score(requests(["x"] * 40 + [completion] + ["xx"] * 40))
        assert 0.5 <= time.monotonic() - began < 4
        assert scores[40] == Score(reward=None, failure="took longer than 0.5 s")
        assert scores[:40] + scores[41:] == rewarded(*[1] * 40, *[2] * 40)
        assert len(set(before) & set(pids(pool))) == 1
        assert all(is_gone(pid) for pid in set(before) - set(pids(pool)))


def test_the_time_limit_is_each_responses_own(own: dict) -> None:
    batch = requests(["return __import__('time').sleep(0.2) or 1"] * 6)
    with ScorePool(own, seed=0, workers=1, time_limit=0.6) as pool:
        assert pool.score(batch) == rewarded(*[1] * 6)


def test_children_of_a_hanging_score_are_stopped(own: dict) -> None:
    with ScorePool(own, seed=0, workers=1, time_limit=0.5) as pool:
        pool.score(requests([f"sleep 61.{os.getpid()}"]))
    commands = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert f"sleep 61.{os.getpid()}" not in commands.splitlines()


def test_printing_and_reading_do_not_disturb(own: dict) -> None:
    with ScorePool(own, seed=0, workers=1, time_limit=5) as pool:
        assert pool.score(requests(["print", "xxx", "read", "x"])) == rewarded(0.25, 3, 0, 1)


def test_a_pool_survives_an_interrupted_call(own: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    with ScorePool(own, seed=0, workers=2, time_limit=5) as pool:
        with monkeypatch.context() as patched:
            patched.setattr(pool, "_collect", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                pool.score(requests(["x"] * 10))
        assert pool.score(requests(["xx", "xxx"])) == rewarded(2, 3)


def _interrupt(batch: object) -> None:
    raise KeyboardInterrupt


def test_a_task_that_cannot_be_built_is_told_at_once(own: dict, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("{\n")
    with pytest.raises(TaskError, match="line 1 is not JSON"):
        ScorePool(own, seed=0, workers=2, time_limit=5)


def test_a_file_that_cannot_be_imported(own: dict, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("1 / 0")
    with pytest.raises(TaskError, match="loading it raised ZeroDivisionError"):
        ScorePool(own, seed=0, workers=1, time_limit=5)


def test_workers_end_with_the_pool(own: dict) -> None:
    with ScorePool(own, seed=0, workers=2, time_limit=5) as pool:
        workers = pids(pool)
        assert not any(Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z" for pid in workers)
    assert all(is_gone(pid) for pid in workers)
    with pytest.raises(RuntimeError, match="closed"):
        pool.score(requests(["x"]))


PARENT = """
import json, sys
from steadyrl.tasks import ScorePool, ScoreRequest
pool = ScorePool(json.loads(sys.argv[1]), seed=0, workers=1, time_limit=float(sys.argv[3]))
print(pool._workers[0]._process.pid, flush=True)
pool.score([ScoreRequest(split="train", index=0, completion=sys.argv[2])])
input()
"""


@pytest.mark.parametrize("completion", ["x", "hang in C"])
def test_workers_end_with_a_parent_that_is_killed(own: dict, completion: str) -> None:
    """Even one that hangs in C code, which can notice nothing; the alarm rings at 2·time_limit + 1 s."""
    command = [sys.executable, "-c", PARENT, json.dumps(own), completion, "0.8"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        time.sleep(0.3)
        parent.send_signal(signal.SIGKILL)
    assert is_gone(worker)


def test_control_c_does_not_reach_the_workers(own: dict) -> None:
    with ScorePool(own, seed=0, workers=1, time_limit=5) as pool:
        assert os.getpgid(pids(pool)[0]) != os.getpgid(0)
        assert os.getsid(pids(pool)[0]) != os.getsid(0)
