"""Renders chat templates in a separate process, because a template is a program that came with a model.

    python -m steadyrl.model.template_worker

The first line is `{"time_limit": 5.0}`. Each further line is one request,
`{"template": …, "variables": {…}, "date": "2026-01-31", "conversations": […], "header": true}`. The answer is
`{"texts": […]}` or `{"error": …}`. If one conversation takes more than `time_limit` seconds of CPU time, SIGPROF ends
the process. The worker ends when its standard input is closed.
"""

import json
import random
import resource
import signal
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

MEMORY = 2**30
"""Bytes that templates may take."""
LONGEST = 2**24
"""Characters of the longest prompt."""


def main() -> None:
    """Serve until standard input ends."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    time_limit = json.loads(sys.stdin.readline())["time_limit"]
    _limit_memory()
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line), time_limit)), flush=True)


def _limit_memory() -> None:
    if sys.platform != "linux":  # elsewhere the limit is not enforced
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _answer(request: Mapping[str, Any], time_limit: float) -> dict[str, Any]:
    texts = []
    for conversation in request["conversations"]:
        signal.setitimer(signal.ITIMER_PROF, time_limit)
        try:
            text = _render(request, conversation)
        except Exception as error:  # the template may raise anything, as a user's verifier may
            return {"error": f"{type(error).__name__}: {error}"[:500]}
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if len(text) > LONGEST:
            return {"error": f"it renders a prompt of {len(text):,} characters; at most {LONGEST:,} are taken"}
        texts.append(text)
    return {"texts": texts}


def _render(request: Mapping[str, Any], conversation: Any) -> str:
    random.seed(0)  # Jinja's filter `random` draws from it: the same prompt at any time
    midnight = datetime.fromisoformat(request["date"])
    texts, _ = render_jinja_template(
        [conversation],
        chat_template=request["template"],
        add_generation_prompt=request["header"],
        strftime_now=midnight.strftime,
        **request["variables"],
    )
    return texts[0]


if __name__ == "__main__":
    main()
