"""Scoring in worker processes: a verifier that raises, hangs or crashes costs one response, never the run."""

import select
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from steadyrl.tasks.base import WHOLE, Context, Split, TaskError
from steadyrl.tasks.process import Worker, WorkerDied

_LARGEST_CHUNK = 64  # requests per message: enough to hide the pipes, few enough to share between workers


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRequest:
    """A response to be scored."""

    split: Split
    """Which problems `index` counts."""
    index: int
    """Which problem it answers."""
    completion: str
    """Its text."""
    context: Context = WHOLE
    """How it came about."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """What a response earned."""

    reward: float | None
    """None where scoring failed: a missing reward is not a reward of 0."""
    failure: str | None
    """Why there is no reward, such as `raised ValueError: …` or `took longer than 10 s`."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Further numbers that the verifier returned, by name."""


class ScorePool:
    """Worker processes that score responses; a context manager.

    Each worker gets a chunk of requests and answers them one by one. The pool writes to a worker only while
    it waits for work, and reads from it only while it works, so that neither blocks the other, however long
    a response is.
    """

    def __init__(self, task_spec: Mapping[str, Any], *, seed: int, workers: int, time_limit: float) -> None:
        """Start the workers and wait until each has built the task.

        Args:
            task_spec: The recipe's task section as plain values, with its `kind`.
            seed: Seed of the task.
            workers: How many processes.
            time_limit: Seconds one response may take; then its worker is killed and replaced.

        Raises:
            TaskError: the task cannot be built.
        """
        spec = {"task": dict(task_spec), "seed": seed, "time_limit": time_limit}
        self._time_limit = time_limit
        self._workers = [Worker(spec) for _ in range(workers)]
        try:
            for worker in self._workers:
                worker.wait_until_ready()
        except TaskError:
            self.close()
            raise

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """Score responses; the scores are in the order of the requests.

        Raises:
            TaskError: a worker had to be replaced, and the task can no longer be built.
        """
        if not self._workers:
            raise RuntimeError("this score pool is closed; score inside its `with` block")
        for worker in self._workers:
            if worker.taken:  # an interrupted call left answers under way
                worker.restart()
        batch = _Batch(requests)
        while len(batch.scores) < len(requests):
            self._hand_out(batch)
            self._collect(batch)
        return [batch.scores[position] for position in range(len(requests))]

    def close(self) -> None:
        """Stop the workers."""
        for worker in self._workers:
            worker.kill()
        self._workers = []

    def __enter__(self) -> Self:
        """The pool itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop the workers."""
        self.close()

    def _hand_out(self, batch: "_Batch") -> None:
        """Give every idle worker a chunk, smaller ones towards the end so that all finish together."""
        for worker in self._workers:
            if batch.waiting and not worker.taken:
                share = len(batch.waiting) // (2 * len(self._workers))
                count = max(1, min(_LARGEST_CHUNK, share))
                worker.taken.extend(batch.waiting.popleft() for _ in range(count))
                chunk = [batch.requests[position] for position in worker.taken]
                worker.send([[request.split, request.index, request.completion] for request in chunk])
                worker.deadline = time.monotonic() + self._time_limit

    def _collect(self, batch: "_Batch") -> None:
        """Wait for answers, or for the first time limit, and record what came."""
        busy = [worker for worker in self._workers if worker.taken]
        patience = max(0.0, min(worker.deadline for worker in busy) - time.monotonic())
        ready = select.select(busy, [], [], patience)[0]
        for worker in busy:
            if worker in ready:
                self._read(worker, batch)
            elif time.monotonic() >= worker.deadline:
                self._give_up(worker, f"took longer than {self._time_limit:g} s", batch)

    def _read(self, worker: Worker, batch: "_Batch") -> None:
        """Record the answers a worker has written."""
        try:
            answers = worker.receive()
        except WorkerDied:
            self._give_up(worker, "worker died", batch)
            return
        for reward, failure in answers:
            batch.scores[worker.taken.popleft()] = Score(reward=reward, failure=failure)
        if answers:
            worker.deadline = time.monotonic() + self._time_limit

    def _give_up(self, worker: Worker, failure: str, batch: "_Batch") -> None:
        """Mark the response that the worker was at, put the rest of its chunk back, and replace it."""
        batch.scores[worker.taken.popleft()] = Score(reward=None, failure=failure)
        batch.waiting.extendleft(reversed(worker.taken))
        worker.restart()


class _Batch:
    """The requests of one call, the positions nobody has taken yet, and the scores so far."""

    def __init__(self, requests: Sequence[ScoreRequest]) -> None:
        self.requests = requests
        self.waiting = deque(range(len(requests)))
        self.scores: dict[int, Score] = {}
