"""Limits on a worker, and closing it: no network, none of the user's files."""

import contextlib
import math
import os
import resource
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from steadyrl.tasks import linux
from steadyrl.tasks.guard import Guard, succeeds

_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/nix/store", "/gnu/store")
_SYSTEM += ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_COVERED = ("/tmp", "/var/tmp", "/mnt", "/sys")  # folders that exist on most systems: the new root is built over one
_WRITABLE = ("/tmp", "/dev/shm")
_SCRATCH = "size=256m,mode=1777"
_CLOSED_FILE, _OPEN_FILE = 1 << 30, 1 << 34  # bytes; a user's function may download a model


def limit(*, memory_gib: float, closed: bool) -> list[str]:
    """Limit memory and files of this process and of those it starts; names what the system refuses."""
    wanted = {
        "RLIMIT_DATA": int(min(memory_gib, 2.0**32) * 2**30),
        "RLIMIT_FSIZE": _CLOSED_FILE if closed else _OPEN_FILE,
        "RLIMIT_CORE": 0,
    }
    if sys.platform != "linux":
        wanted.pop("RLIMIT_DATA")  # it does not count what malloc maps there
    refused = [] if "RLIMIT_DATA" in wanted else ["a limit on memory"]
    for name, value in wanted.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (most, most))
        except (OSError, ValueError):
            refused.append(name)
    return refused


def allow_processor(seconds: float) -> None:
    """Let this process use so many more seconds on every processor; then the system ends it.

    The run's own limit comes first. This one ends what the run can no longer reach.
    """
    most = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = math.ceil(time.process_time() + min(seconds, 1e9) * (os.cpu_count() or 1)) + 1
    soft = soft if most == resource.RLIM_INFINITY else min(soft, most)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (soft, most))


def close(guard: Guard, *, keep: Iterable[Path]) -> list[str]:
    """Take network and files away, as far as the system allows; names what it does not.

    What stays readable: Python with its packages, the system's libraries, and `keep`. What stays writable: an empty
    temporary folder, which becomes the working directory.
    """
    lacking = []
    home = guard.folder
    if guard.isolated:
        if succeeds(_leave_network):
            _leave_network()
        else:
            lacking.append("a closed network")
        seen = _seen(keep)
        if succeeds(lambda: _try_root(seen)):
            home = _build_root(seen)
        else:
            lacking.append("private files")
        linux.drop_privileges()
    else:
        lacking += ["a closed network", "private files"]
    os.chdir(home)
    os.environ.update(HOME=home, TMPDIR=home)
    return lacking


def _leave_network() -> None:
    linux.unshare(linux.NEW_NETWORK | linux.NEW_IPC)


def _try_root(seen: dict[str, str]) -> None:
    _build_root(seen)
    os.listdir(os.path.dirname(os.__file__))  # Python must still be there


def _seen(keep: Iterable[Path]) -> dict[str, str]:
    """What a closed worker can read: where it is shown, and where it really is."""
    python = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, *sys.path}
    loader = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    wanted = {*_SYSTEM, *_DEVICES, *python, *loader, *map(str, keep), *_mapped()}
    shown = {}
    for path in filter(os.path.isabs, wanted):
        real = os.path.realpath(path)
        if os.path.exists(real) and "/" not in (real, os.path.normpath(path)):
            shown |= {os.path.normpath(path): real, real: real}
    return shown


def _mapped() -> set[str]:
    """Folders of the libraries that this process has loaded."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    return {os.path.dirname(line.split(maxsplit=5)[5]) for line in lines if "/" in line and ".so" in line}


def _build_root(seen: dict[str, str]) -> str:
    """Replace the root by one that shows `seen` alone, all of it read-only; returns the folder for scratch files."""
    linux.unshare(linux.NEW_MOUNTS)  # the guard keeps its own root
    base = next(path for path in _COVERED if os.path.isdir(path))
    linux.mount("tmpfs", base, "tmpfs", linux.NO_SUID | linux.NO_DEVICES, "mode=755")
    os.mkdir(f"{base}/old")
    linux.replace_root(base, f"{base}/old")
    os.chdir("/")
    for folder in _WRITABLE:
        os.makedirs(folder)
        linux.mount("tmpfs", folder, "tmpfs", linux.NO_SUID | linux.NO_DEVICES, _SCRATCH)
    for path, real in sorted(seen.items()):
        if not os.path.lexists(path):
            _show(path, f"/old{real}")
    os.makedirs("/proc", exist_ok=True)
    with contextlib.suppress(OSError):
        linux.mount("proc", "/proc", "proc", linux.NO_SUID | linux.NO_DEVICES | linux.NO_PROGRAMS)
    linux.unmount("/old")
    os.rmdir("/old")
    linux.make_read_only("/")
    for folder in _WRITABLE:
        linux.make_writable(folder)
    return "/tmp"


def _show(path: str, source: str) -> None:
    """Bind a file or folder of the old root into the new one."""
    if os.path.isdir(source):
        os.makedirs(path)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    linux.mount(source, path, None, linux.BIND | linux.RECURSIVE)
