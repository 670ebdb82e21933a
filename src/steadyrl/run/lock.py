"""One process trains in a run directory. A file that is never replaced carries the lock."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
from pathlib import Path

from steadyrl.errors import UserError

_UNSUPPORTED = {errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


class LockedError(UserError):
    """Another process trains in the run directory. The message names it and the way out."""


class Lock:
    """The lock of a run directory, held until `close` or until the process ends, however it ends.

    The system locks `RUN/lock`: an editor that replaces `recipe.json` does not touch it. Some network file systems
    cannot lock. There, `RUN/lock.holder` names the process and its host instead, and a warning says so.
    """

    def __init__(self, run: Path) -> None:
        """Take the lock.

        Raises:
            LockedError: another process has it.
        """
        self._holder: Path | None = None
        self._file = (run / "lock").open("a")  # for writing: some network file systems lock no file opened to read
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise LockedError(f"{run} is being trained by another process; wait for it, or stop it") from None
        except OSError as error:
            self._file.close()
            if error.errno not in _UNSUPPORTED:
                raise
            print(
                f"steadyrl: the file system of {run} cannot lock ({error.strerror}); {run / 'lock.holder'} names this "
                "process instead",
                file=sys.stderr,
            )
            self._holder = _hold(run / "lock.holder", run)

    def close(self) -> None:
        """Let others have it."""
        self._file.close()
        if self._holder is not None:
            self._holder.unlink(missing_ok=True)


def _hold(path: Path, run: Path) -> Path:
    """Create the file that names this process, which fails where it exists; replace that of a process that is gone."""
    me = {"pid": os.getpid(), "host": socket.gethostname()}
    for _ in range(2):
        try:
            with path.open("x", encoding="utf-8") as file:
                json.dump(me, file)
            return path
        except FileExistsError:
            other = _read(path)
            if other.get("host") != me["host"] or runs(other.get("pid")):
                raise LockedError(
                    f"{run} is being trained by process {other.get('pid')} on {other.get('host')}; wait for it, or "
                    f"stop it. If it is gone, delete {path}"
                ) from None
            path.unlink(missing_ok=True)
    raise LockedError(f"{run} was taken by another process just now; wait for it, or stop it")


def _read(path: Path) -> dict[str, object]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {"pid": "unknown", "host": "an unknown host"}


def runs(pid: object) -> bool:
    """Whether another process of this machine is alive and has this id."""
    if not isinstance(pid, int) or pid <= 0 or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
