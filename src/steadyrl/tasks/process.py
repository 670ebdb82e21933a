"""One worker process, seen from the run: JSON lines over two pipes."""

import contextlib
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steadyrl.tasks.base import TaskError

LOADING_LIMIT = 60.0
"""Seconds that loading a user's function may take, or `verifier.time_limit` where that is more."""
_LONGEST_LINE = 1 << 24
_LONGEST_WAIT = 3600.0  # what the system's calls can hold; whoever waits looks again
_FAREWELL = 10.0  # seconds the guard has to kill what is left
_LAST_MOMENTS = 1.0  # seconds between the end of a worker and that of its guard


class WorkerDied(Exception):
    """The worker ended where an answer was due."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """What a worker says of itself when the task is built."""

    lacking: tuple[str, ...]
    """Guards that its system does not have."""
    size: int | None
    """Training problems; None where they are endless."""
    label: str | None
    """Name of the user's function; None where ours verifies."""
    grouped: bool
    """The function gets all responses to a prompt in one call."""
    tokens: bool
    """The function wants token ids."""


class Worker:
    """A worker, started at once; its standard error is the run's own."""

    def __init__(self, spec: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        """Start it and tell it which task to build."""
        self._spec, self._environment = spec, environment
        self.taken: deque[int] = deque()
        """Positions of the requests it was handed and has not answered."""
        self.deadline = 0.0
        """When the first of them is overdue."""
        self._start()

    def _start(self) -> None:
        # -P: modules in the folder a run starts in must not shadow installed ones. A new session:
        # Ctrl-C reaches the run alone
        command = [sys.executable, "-P", "-m", "steadyrl.tasks.worker", str(os.getpid())]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            env=dict(self._environment),
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._replies = self._process.stdin, self._process.stdout
        self._partial = b""
        self.send(self._spec)

    def restart(self) -> None:
        """Kill the worker, forget its requests, and start another.

        Raises:
            TaskError: the task can no longer be built.
        """
        self.kill()
        self.taken.clear()
        self._start()
        self.wait_until_ready()

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._process.poll() is None

    def wait_until_ready(self) -> Ready:
        """Wait until the task is built.

        Raises:
            TaskError: it cannot be, with the worker's reason; or loading the user's function takes too long.
        """
        limit, deadline = max(LOADING_LIMIT, self._spec["time_limit"]), math.inf
        while True:
            if not self._wait(deadline):
                self.kill()
                raise TaskError(
                    f"reward = {self._spec['task'].get('reward')!r}: loading it took longer than {limit:g} s; "
                    "raise verifier.time_limit if it needs more"
                )
            try:
                messages = self.receive()
            except WorkerDied as error:
                raise TaskError(
                    f"a verifier worker {self.end()} while building the task{self._while_loading(deadline)}; "
                    "see its message above"
                ) from error
            for message in messages:
                if "error" in message:
                    raise TaskError(str(message["error"]))
                if "stage" in message:
                    deadline = time.monotonic() + limit
                if "ready" in message:
                    return _ready(message["ready"])

    def _wait(self, deadline: float) -> bool:
        """Whether something can be read before the deadline."""
        with selectors.DefaultSelector() as selector:
            selector.register(self, selectors.EVENT_READ)
            while (left := deadline - time.monotonic()) > 0.0:
                if selector.select(min(left, _LONGEST_WAIT)):
                    return True
        return False

    def _while_loading(self, deadline: float) -> str:
        reward = self._spec["task"].get("reward")
        return f" and loading reward = {reward!r}" if math.isfinite(deadline) else ""

    def fileno(self) -> int:
        """The descriptor that becomes readable when there are answers, for a selector."""
        return self._replies.fileno()

    def send(self, message: Any) -> None:
        """Write one line. A worker that died is noticed when its answer is read."""
        rest = memoryview(json.dumps(message).encode() + b"\n")
        try:
            while rest:
                rest = rest[self._requests.write(rest) or 0 :]
        except BrokenPipeError:
            return

    def receive(self) -> list[dict[str, Any]]:
        """The messages that have arrived whole; blocks until there is at least a part of one.

        A line that is no message is left out: code that the worker runs may have written it.

        Raises:
            WorkerDied: there will be none.
        """
        data = os.read(self.fileno(), 1 << 16)
        if not data or len(self._partial) > _LONGEST_LINE:
            raise WorkerDied
        *lines, self._partial = (self._partial + data).split(b"\n")
        return [message for line in lines if (message := _parsed(line)) is not None]

    def end(self) -> str:
        """How its process ended, in words; it is killed if it has not."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST_MOMENTS)
        self.kill()
        code = self._process.returncode
        if code > 128 or code < 0:
            number = code - 128 if code > 128 else -code
            with contextlib.suppress(ValueError):
                return f"was killed by {signal.Signals(number).name}"
        return f"ended with exit code {code}"

    def kill(self) -> None:
        """End it, and whatever its verifier started. It has nothing to save, so there is no farewell."""
        if self._process.returncode is None:
            self._process.terminate()  # the guard kills all others and ends
            try:
                self._process.wait(_FAREWELL)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._requests.close()
        self._replies.close()


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


def _ready(facts: Mapping[str, Any]) -> Ready:
    own = facts["own"] or {}
    return Ready(
        lacking=tuple(facts["lacking"]),
        size=facts["size"],
        label=own.get("label"),
        grouped=own.get("grouped", False),
        tokens=own.get("tokens", False),
    )
