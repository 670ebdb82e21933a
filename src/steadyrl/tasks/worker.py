"""A verifier worker: a process that reads responses as JSON lines and answers each with a reward.

    python -m steadyrl.tasks.worker RUN

RUN is the process id of the run. The first line of standard input says which task to build. The worker answers
`{"stage": "loading"}` before it loads a user's function, then `{"error": …}`, or `{"ready": {…}}` with what the run
must know. After that, a line is a list of requests, and each is answered by its own line with the request's `id`. The
worker ends with its standard input.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import IO, Any

from steadyrl.errors import UserError
from steadyrl.options.own import OwnCode, find_own, in_words, is_own
from steadyrl.tasks import linux
from steadyrl.tasks.base import Context, Task
from steadyrl.tasks.build import build_task
from steadyrl.tasks.closing import allow_processor, close, limit
from steadyrl.tasks.grading import NotANumber, cut, grade, rewards_of
from steadyrl.tasks.guard import Guard, become_worker
from steadyrl.tasks.questions import Questions

Reply = dict[str, Any]


def main() -> None:
    """Serve until standard input ends."""
    guard = become_worker(int(sys.argv[1]))
    requests, replies = _take_pipes()
    spec = json.loads(requests.readline())
    try:
        task, facts = _prepare(spec, guard, replies)
    except UserError as error:
        _send(replies, {"error": str(error)})
        os._exit(0)  # the user's file may have left threads behind
    _send(replies, {"ready": facts})
    for line in requests:
        batch = _with_prompts(json.loads(line))
        allow_processor(spec["time_limit"] * 2 * len(batch))
        for reply in _answers(task, batch, spec["memory_gib"]):
            _send(replies, reply)
    os._exit(0)


def _with_prompts(batch: list[Reply]) -> list[Reply]:
    """The requests, each with its prompt; where several answer one, it was sent with the first."""
    shown = None
    for request in batch:
        if request["context"]:
            shown = request["context"][0] = shown if request["context"][0] is None else request["context"][0]
    return batch


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


def _send(replies: IO[str], reply: Reply) -> None:
    replies.write(json.dumps(reply, separators=(",", ":")) + "\n")
    replies.flush()


def _prepare(spec: dict[str, Any], guard: Guard, replies: IO[str]) -> tuple[Task, dict[str, Any]]:
    """Build the task, close the worker where it must be, then load the user's code.

    The problems of a task of ours are read first: a closed worker can no longer read the user's files. A task of the
    user's own is code of the user's own, so it is built last.
    """
    if spec["run_folder"] is not None:
        with contextlib.suppress(OSError):
            os.chdir(spec["run_folder"])
    kind = spec["task"]["kind"]
    own_task = find_own(kind, field="task.kind") if is_own(kind) else None
    task = None if own_task else build_task(kind, seed=spec["seed"], parameters=spec["task"])
    file = own_task or (task.own_file if isinstance(task, Questions) else None)
    lacking = _guarded(spec, guard, file)
    if file:
        _send(replies, {"stage": "loading"})
    me = os.getpid()
    try:
        task = task or build_task(kind, seed=spec["seed"], parameters=spec["task"])
        facts: dict[str, Any] = {"lacking": lacking, "size": task.size("train"), "own": None}
        if file:
            function = task.own_function if isinstance(task, Questions) else None
            grouped = function is not None and function.form == "trl"
            facts["own"] = {"label": file.label, "grouped": grouped, "tokens": not function or function.wants_tokens}
    finally:
        _end_a_fork(me)
    return task, facts


def _guarded(spec: Reply, guard: Guard, file: OwnCode | None) -> list[str]:
    """Close the worker, unless it runs the user's own code; the guards that this system lacks."""
    closed = spec["closed"] or file is None
    lacking = [] if guard.isolated else ["namespaces of processes"]
    if closed:
        lacking += close(guard, keep=file.folders if file else ())
    else:
        _work_in(spec["folder"] or spec["run_folder"], guard)
    return lacking + limit(memory_gib=spec["memory_gib"], closed=closed)


def _work_in(folder: str | None, guard: Guard) -> None:
    """Change to the recipe's folder; tells where that is not possible."""
    if guard.own_user:
        linux.drop_privileges()
    try:
        os.chdir(folder or guard.folder)
    except OSError as error:
        os.chdir(guard.folder)
        print(f"steadyrl: the reward function runs in a temporary folder: {error}", file=sys.stderr)


def _answers(task: Task, batch: list[Reply], memory_gib: float) -> Iterator[Reply]:
    """Replies to a batch, one by one; a group in TRL's form is answered at once."""
    if isinstance(task, Questions) and task.own_file and task.own_function.form == "trl":
        yield from _group(task, batch, memory_gib)
        return
    for request in batch:
        yield {"id": request["id"], **_graded(lambda request=request: _call(task, request), memory_gib)}


def _call(task: Task, request: Reply) -> Any:
    completion = _completion(task, request)
    return task.reward(request["split"], request["index"], completion, Context(**_context(task, request)))


def _group(task: Questions, batch: list[Reply], memory_gib: float) -> Iterator[Reply]:
    """Verify all responses of a group in one call; after one that fails, the run sends each response alone."""
    examples = [task.example(request["split"], request["index"]) for request in batch]
    completions = [_completion(task, request) for request in batch]
    contexts = [Context(**_context(task, request)) for request in batch]
    returned: list[Any] = []

    def call() -> float:
        returned.append(task.own_function(examples, completions, contexts))
        return 0.0

    failure = _graded(call, memory_gib).get("failure")
    if failure is not None:
        yield {"ids": [request["id"] for request in batch], "failure": failure}
        return
    try:
        rewards = rewards_of(returned[0], len(batch))
    except NotANumber as error:
        yield from ({"id": request["id"], "failure": cut(str(error))} for request in batch)
        return
    for request, reward in zip(batch, rewards, strict=True):
        yield {"id": request["id"], **_graded(lambda reward=reward: reward, memory_gib)}


def _completion(task: Task, request: Reply) -> str:
    """The response; the trial of a user's function has none, and takes the problem's own solution."""
    if request["completion"] is not None:
        return request["completion"]
    return task.example(request["split"], request["index"]).solution


def _context(task: Task, request: Reply) -> dict[str, Any]:
    if request["completion"] is None:
        question = task.example(request["split"], request["index"]).question
        return {"prompt_text": question, "token_ids": (0,)}
    prompt_text, finish_reason, token_ids = request["context"]
    return {"prompt_text": prompt_text, "finish_reason": finish_reason, "token_ids": tuple(token_ids)}


def _graded(call: Callable[[], Any], memory_gib: float) -> Reply:
    """The reward and its parts, or why there is none."""
    me = os.getpid()
    try:
        reward, parts = grade(call())
        return {"reward": reward, "parts": parts} if parts else {"reward": reward}
    except NotANumber as error:
        failure = str(error)
    except SystemExit as end:
        failure = f"called sys.exit({'' if end.code is None else repr(end.code)})"
    except MemoryError:
        failure = f"raised MemoryError; a worker may use verifier.memory_gib = {memory_gib:g}"
    except BaseException as error:  # a verifier may raise anything, and the run must go on
        failure = f"raised {in_words(error)}"
    finally:
        _end_a_fork(me)
    return {"failure": cut(failure)}


def _end_a_fork(worker: int) -> None:
    """End a child process that came back out of the user's code: the worker alone answers."""
    if os.getpid() != worker:
        os._exit(0)


if __name__ == "__main__":
    main()
