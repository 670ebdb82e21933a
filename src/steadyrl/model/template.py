"""A chat template, seen from the run: it is rendered by a worker process, within limits of time and memory."""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from steadyrl.errors import UserError

Conversation = Sequence[Mapping[str, Any]]
"""Turns of a conversation, each with its `role` and `content`."""
TIME_LIMIT = 2.0
"""Seconds of CPU time for one prompt; usual templates take less than a millisecond."""


class TemplateError(UserError):
    """A chat template that cannot be rendered. The message says why, in the template's own words."""


class EndlessTemplate(TemplateError):
    """A chat template that takes too long."""


class Renderer:
    """The worker process; a context manager. It starts with the first template, and again after one that hangs."""

    def __init__(self, *, time_limit: float = TIME_LIMIT) -> None:
        self._time_limit = time_limit
        self._process: subprocess.Popen[str] | None = None

    def render(
        self,
        template: str,
        conversations: Sequence[Conversation],
        *,
        variables: Mapping[str, Any],
        date: str,
        header: bool,
    ) -> list[str]:
        """Prompts of conversations.

        Args:
            template: Jinja text.
            conversations: what each prompt holds.
            variables: special tokens by name.
            date: `2026-01-31`; midnight of that day is what `strftime_now` formats.
            header: ask for the header of the answer (`add_generation_prompt`).

        Raises:
            TemplateError: the template raises, is too slow, or takes too much memory.
        """
        request = {"template": template, "variables": variables, "date": date, "header": header}
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # that the worker has ended is noticed when its answer is read
            process.stdin.write(json.dumps(request | {"conversations": conversations}) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if not line.endswith("\n"):
            raise self._why_it_ended(process)
        reply = json.loads(line)
        if "error" in reply:
            raise TemplateError(f"the chat template cannot be rendered: {reply['error'].rstrip('.')}")
        return reply["texts"]

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            # -P: modules in the folder a run starts in must not shadow installed ones. A new session: Ctrl-C
            # reaches the run alone
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "steadyrl.model.template_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                start_new_session=True,
            )
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({"time_limit": self._time_limit}) + "\n")
        return self._process

    def _why_it_ended(self, process: subprocess.Popen[str]) -> TemplateError:
        process.wait()
        self.close()
        if process.returncode == -signal.SIGPROF:
            return EndlessTemplate(
                f"the chat template takes more than {self._time_limit:g} s for one prompt; it may never end. "
                "Fix the chat template of the tokenizer"
            )
        return TemplateError(f"the process that renders the chat template ended with exit code {process.returncode}")

    def close(self) -> None:
        """Stop the worker."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.kill()
        process.wait()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):  # of what was not sent
            process.stdin.close()

    def __enter__(self) -> "Renderer":
        """The renderer itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop the worker."""
        self.close()
