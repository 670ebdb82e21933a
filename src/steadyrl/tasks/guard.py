"""Processes around a worker, so that nothing it starts outlives it or the run.

The run starts a *guard*. The guard waits for the end of the run or of the worker, then kills what is left. Where the
system offers namespaces, the worker lives in a namespace of process ids, and its first process takes all others
along when it ends. Elsewhere on Linux the guard adopts orphans and kills them one by one. On other systems it kills
the worker's session.
"""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from steadyrl.tasks import linux

_WATCHED = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM}
_EVERY = 0.25  # seconds between checks of the parent, where no signal tells of its end
_PATIENCE = 5.0  # seconds to wait for processes that were killed


@dataclass(frozen=True, kw_only=True, slots=True)
class Guard:
    """The guard of a worker."""

    isolated: bool
    """It has namespaces of mounts and process ids."""
    own_user: bool
    """It also has a namespace of users, whose privileges must be dropped."""
    folder: str
    """An empty folder that is removed after the worker."""


def become_worker(run: int) -> Guard:
    """Fork until this process is a guarded worker; returns in the worker alone.

    Args:
        run: Process id of the run, the parent of this process.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    on_linux = sys.platform == "linux"
    if on_linux:
        linux.adopt_orphans()
        linux.die_with_parent(signal.SIGHUP)
    folder = _temporary_folder()
    isolated, own_user = _isolate() if on_linux else (False, False)
    if child := os.fork():
        _watch(child, run, folder)
    if isolated:
        linux.die_with_parent(signal.SIGKILL)
        with contextlib.suppress(OSError):  # inside some containers; then /proc shows the outer processes
            linux.mount("proc", "/proc", "proc", linux.NO_SUID | linux.NO_DEVICES | linux.NO_PROGRAMS)
        if child := os.fork():
            _reap(child)
    if on_linux:
        linux.die_with_parent(signal.SIGKILL)
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
    return Guard(isolated=isolated, own_user=own_user, folder=folder)


def _temporary_folder() -> str:
    try:
        return tempfile.mkdtemp(prefix="steadyrl-verifier-")
    except OSError:  # no temporary folder can be written
        return "/"


def _isolate() -> tuple[bool, bool]:
    """Enter namespaces, if a child that tries it first succeeds; whether it did, and with one of users."""
    for own_user in (False, True):
        if succeeds(lambda own_user=own_user: _enter(own_user, trial=True)):
            _enter(own_user, trial=False)
            return True, own_user
    return False, False


def _enter(own_user: bool, *, trial: bool) -> None:
    user, group = os.geteuid(), os.getegid()
    linux.unshare(linux.NEW_MOUNTS | linux.NEW_PIDS | (linux.NEW_USER if own_user else 0))
    if own_user:
        maps = {"setgroups": "deny", "uid_map": f"{user} {user} 1", "gid_map": f"{group} {group} 1"}
        for name, line in maps.items():
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(line)
    linux.mount(None, "/", None, linux.RECURSIVE | linux.SLAVE)
    if trial:
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)


def succeeds(attempt: Callable[[], None]) -> bool:
    """Whether a child process can do this; nothing of it happens here."""
    child = os.fork()
    if not child:
        status = 1
        try:
            attempt()
            status = 0
        except OSError:
            pass
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


def _watch(child: int, run: int, folder: str) -> NoReturn:
    """The guard: wait until the worker or the run ends, kill what is left, and end with the worker's status."""
    _let_go_of_pipes()
    signal.setitimer(signal.ITIMER_REAL, _EVERY, _EVERY)
    status = None
    while status is None and os.getppid() == run:
        number = signal.sigwait(_WATCHED)
        if number in (signal.SIGTERM, signal.SIGINT):
            break
        status = _collect(child)
    code = 0 if status is None else exit_code(status)
    _sweep(child)
    if folder != "/":
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(code)


def _collect(child: int) -> int | None:
    """Take note of processes that ended; the status of `child` if it is among them."""
    status = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            status = ended[1] if ended[0] == child else status
    return status


def _sweep(child: int) -> None:
    """Kill the worker, its session, and every descendant that was adopted, until none is left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        for process in {child, *_children()}:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)


def _children() -> set[int]:
    """Processes whose parent this one is, after /proc; none where there is no /proc."""
    found, me = set(), str(os.getpid())
    with contextlib.suppress(OSError):
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                if file.read().rpartition(")")[2].split()[1] == me:
                    found.add(int(name))
    return found


def _reap(child: int) -> NoReturn:
    """The first process of a namespace: collect orphans; when the worker ends, all others end with this one."""
    _let_go_of_pipes()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # from within, signals without a handler do not reach it
    while True:
        ended, status = os.wait()
        if ended == child:
            os._exit(exit_code(status))


def exit_code(status: int) -> int:
    """Exit code of a status, by the shell's convention: 128 + the signal that killed it."""
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def _let_go_of_pipes() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.close(nothing)
