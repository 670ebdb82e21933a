"""One worker process, seen from the run: JSON lines over two pipes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from typing import Any

from steadyrl.tasks.base import TaskError


class WorkerDied(Exception):
    """The worker ended where an answer was due."""


class Worker:
    """A worker, started at once; its standard error is the run's own."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        """Start it and tell it which task to build."""
        self._spec = spec
        self.taken: deque[int] = deque()
        """Positions of the requests it was handed and has not answered."""
        self.deadline = 0.0
        """When the first of them is overdue."""
        self._start()

    def _start(self) -> None:
        # -P: modules in the folder a run starts in must not shadow installed ones. A session of its own:
        # Ctrl-C reaches the run alone, and a kill takes along the processes that a verifier started.
        command = [sys.executable, "-P", "-m", "steadyrl.tasks.worker"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0, start_new_session=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._replies = self._process.stdin, self._process.stdout
        self._partial = b""
        self.send(self._spec)

    def restart(self) -> None:
        """Kill it, forget what it was handed, and start anew."""
        self.kill()
        self.taken.clear()
        self._start()
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait until the task is built.

        Raises:
            TaskError: it cannot be, with the worker's reason.
        """
        try:
            while not (answers := self.receive()):
                pass
        except WorkerDied as error:
            code = self._process.wait()
            raise TaskError(
                f"a scoring worker ended with exit code {code} while building the task; see its message above"
            ) from error
        if answers[0] is not None:
            raise TaskError(answers[0])

    def fileno(self) -> int:
        """The descriptor that becomes readable when there are answers, for `select`."""
        return self._replies.fileno()

    def send(self, message: Any) -> None:
        """Write one line. A worker that died is noticed when its answer is read."""
        rest = memoryview(json.dumps(message).encode() + b"\n")
        try:
            while rest:
                rest = rest[self._requests.write(rest) or 0 :]
        except BrokenPipeError:
            return

    def receive(self) -> list[Any]:
        """The answers that have arrived whole; blocks until there is at least a part of one.

        Raises:
            WorkerDied: there will be none.
        """
        data = os.read(self.fileno(), 1 << 16)
        if not data:
            raise WorkerDied
        *lines, self._partial = (self._partial + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def kill(self) -> None:
        """End it, and whatever its verifier started. It has nothing to save, so there is no farewell."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it ended by itself
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._requests.close()
        self._replies.close()
