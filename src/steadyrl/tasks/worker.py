"""A scoring worker: a process that reads responses as JSON lines and answers each with a reward.

    python -m steadyrl.tasks.worker

The first line is `{"task": {…}, "seed": 0, "time_limit": 10.0}`, answered by `null` or by what is wrong with
the task. Then a line is a list of `[split, index, completion]`, and each of them is answered by its own line
`[reward, failure]`. The worker ends with its standard input.
"""

import json
import math
import numbers
import os
import signal
import sys
from typing import IO, Any

from steadyrl.tasks.base import Task, TaskError
from steadyrl.tasks.build import build_task

_LONGEST_FAILURE = 500


def main() -> None:
    """Serve until standard input ends."""
    requests, replies = _take_pipes()
    spec = json.loads(requests.readline())
    try:
        task = build_task(spec["task"]["kind"], seed=spec["seed"], parameters=spec["task"])
    except TaskError as error:
        _send(replies, str(error))
        return
    _send(replies, None)
    # the parent enforces the limit; this alarm ends a hanging worker whose parent is gone
    alarm = 2 * spec["time_limit"] + 1
    for line in requests:
        for split, index, completion in json.loads(line):
            signal.setitimer(signal.ITIMER_REAL, alarm)
            reply = _score(task, split, index, completion)
            signal.setitimer(signal.ITIMER_REAL, 0)
            _send(replies, reply)


def _take_pipes() -> tuple[IO[str], IO[str]]:
    """Move the two pipes away from stdin and stdout, out of reach of what a user's code reads or prints."""
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return requests, replies


def _send(replies: IO[str], reply: Any) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


def _score(task: Task, split: Any, index: int, completion: str) -> tuple[float | None, str | None]:
    """The reward, or None and why there is none."""
    try:
        value = task.score(split, index, completion)
        if not isinstance(value, numbers.Real):
            return None, f"returned {value!r}, not a number"[:_LONGEST_FAILURE]
        reward = float(value)
    except Exception as error:  # a verifier may raise anything, and the run must go on
        return None, f"raised {type(error).__name__}: {error}"[:_LONGEST_FAILURE]
    return (reward, None) if math.isfinite(reward) else (None, f"returned {reward}")


if __name__ == "__main__":
    main()
