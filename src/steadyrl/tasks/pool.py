"""Rewards from worker processes: a verifier that raises, hangs or crashes costs one response, never the run."""

import itertools
import os
import selectors
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

from steadyrl.tasks.base import TaskError
from steadyrl.tasks.batch import Batch, Reward, RewardRequest, as_message, reward_in, wire
from steadyrl.tasks.calling import KNOWN_FORMS
from steadyrl.tasks.environment import worker_environment
from steadyrl.tasks.process import Worker, WorkerDied

_TRIALS = 3  # problems that a user's function is tried on before it is rejected
_LONGEST_WAIT = 3600.0


class RewardPool:
    """Worker processes that verify responses; a context manager.

    Each worker gets a chunk of requests and answers them one by one. The pool writes to a worker only while
    it waits for work, and reads from it only while it works, so that neither blocks the other, however long
    a response is.

    A response that takes too long has no reward. One at which a worker dies is verified once more, on a fresh worker;
    if that dies too, it has no reward. A function in TRL's form gets all responses to a prompt in one call, within
    their number times the limit; if the call fails, each of them is verified alone.
    """

    def __init__(
        self,
        task_spec: Mapping[str, Any],
        *,
        seed: int,
        workers: int,
        time_limit: float,
        environment: Sequence[str] = (),
        closed: bool = False,
        memory_gib: float = 8.0,
        folder: str | None = None,
    ) -> None:
        """Start the workers, wait until each has built the task, and try a user's function on the first problems.

        Args:
            task_spec: The recipe's task section as plain values, with its `kind`.
            seed: Seed of the task.
            workers: How many processes.
            time_limit: Seconds one response may take; then its worker is killed and replaced.
            environment: Environment variables that workers get beside those of the allow-list.
            closed: Without network and the user's files, also for a user's function; ours always is.
            memory_gib: GiB that each process of a worker may use.
            folder: Working directory of a user's function; None: the run's.

        Raises:
            TaskError: the task cannot be built, or the user's function cannot be called.
        """
        spec = {"task": dict(task_spec), "seed": seed, "time_limit": time_limit, "memory_gib": memory_gib}
        spec |= {"closed": closed, "folder": folder, "run_folder": _working_directory()}
        self._time_limit = time_limit
        self._numbers = itertools.count()
        variables = worker_environment(os.environ, environment)
        self._workers = [Worker(spec, variables) for _ in range(workers)]
        try:
            self._ready, *_ = [worker.wait_until_ready() for worker in self._workers]
            self._try_function()
        except BaseException:
            self.close()
            raise

    @property
    def lacking(self) -> tuple[str, ...]:
        """Guards that this system does not offer, in words."""
        return self._ready.lacking

    def rewards(self, requests: Sequence[RewardRequest]) -> list[Reward]:
        """The rewards of responses, in the order of the requests.

        Raises:
            TaskError: a worker had to be replaced, and the task can no longer be built.
        """
        if not self._workers:
            raise RuntimeError("this reward pool is closed; use it inside its `with` block")
        return self._rewards([wire(request, tokens=self._ready.tokens) for request in requests])

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

    def _try_function(self) -> None:
        """Verify the solutions of the first problems by a user's function; one of them must get a reward."""
        label, size = self._ready.label, self._ready.size or 0
        failures: list[str] = []
        while label and len(failures) < min(_TRIALS, size):
            request = {"split": "train", "index": len(failures), "completion": None, "context": None}
            rewards = self._rewards([request] * (2 if self._ready.grouped else 1))
            if rewards[0].failure is None:
                return
            failures.append(rewards[0].failure)
        if failures:
            raise TaskError(
                f"{label}: it gave the first problem's own solution no reward: {failures[0]}. A reward function "
                f"returns a finite number, or a dict with the number `score`. {KNOWN_FORMS}"
            )

    def _rewards(self, wires: list[dict[str, Any]]) -> list[Reward]:
        for worker in self._workers:
            if worker.taken or not worker.alive:  # an interrupted call left answers under way; or it died since
                worker.restart()
        batch = Batch([{"id": next(self._numbers), **wire} for wire in wires], grouped=self._ready.grouped)
        while len(batch.rewards) < len(wires):
            self._hand_out(batch)
            self._collect(batch)
        return [batch.rewards[position] for position in range(len(wires))]

    def _hand_out(self, batch: "Batch") -> None:
        """Give every idle worker a chunk, smaller ones towards the end so that all finish together."""
        for worker in self._workers:
            if batch.waiting and not worker.taken:
                worker.taken.extend(batch.next_chunk(len(self._workers)))
                worker.send(as_message([batch.requests[position] for position in worker.taken]))
                self._set_deadline(worker)

    def _set_deadline(self, worker: Worker) -> None:
        responses = len(worker.taken) if self._ready.grouped else 1
        worker.deadline = time.monotonic() + responses * self._time_limit

    def _collect(self, batch: "Batch") -> None:
        """Wait for answers, or for the first time limit, and record what came."""
        busy = [worker for worker in self._workers if worker.taken]
        patience = min(worker.deadline for worker in busy) - time.monotonic()
        with selectors.PollSelector() as selector:
            for worker in busy:
                selector.register(worker, selectors.EVENT_READ)
            ready = {key.fileobj for key, _ in selector.select(max(0.0, min(patience, _LONGEST_WAIT)))}
        for worker in busy:
            if worker in ready:
                self._read(worker, batch)
            if worker.taken and time.monotonic() >= worker.deadline:
                self._stop(worker, batch)

    def _read(self, worker: Worker, batch: "Batch") -> None:
        """Record the answers a worker has written; those to no open request are left out."""
        try:
            messages = worker.receive()
        except WorkerDied:
            self._bury(worker, batch)
            return
        answered = False
        for message in messages:
            position = batch.position(message.get("id"))
            if position in worker.taken and (reward := reward_in(message)):
                batch.rewards[position] = reward
                worker.taken.remove(position)
                answered = True
            elif message.get("ids") == [batch.requests[position]["id"] for position in worker.taken]:
                batch.take_apart(worker.taken, str(message.get("failure")))
                worker.taken.clear()
        if answered:
            self._set_deadline(worker)

    def _stop(self, worker: Worker, batch: "Batch") -> None:
        """Replace a worker that takes too long; the response it is at has no reward."""
        failure = f"took longer than {self._time_limit:g} s"
        if self._ready.grouped:
            batch.take_apart(worker.taken, failure)
        else:
            batch.rewards[worker.taken.popleft()] = Reward.failed(failure)
            batch.put_back(worker.taken)
        worker.restart()

    def _bury(self, worker: Worker, batch: "Batch") -> None:
        """Replace a worker that died; the response it was at is verified once more, alone."""
        ended = worker.end()
        if self._ready.grouped and len(worker.taken) > 1:
            batch.take_apart(worker.taken, "")
        else:
            first = worker.taken.popleft()
            batch.put_back(worker.taken)
            if first in batch.fatal:
                batch.rewards[first] = Reward.failed(f"worker died: it {ended}")
            else:
                batch.fatal.add(first)
                batch.alone.add(first)
                batch.put_back([first])
        worker.restart()


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return None
