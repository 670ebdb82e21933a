"""The few Linux system calls that keep a worker's processes together and closed, through the C library."""

import ctypes
import os
import signal

NEW_MOUNTS = 0x00020000
NEW_IPC = 0x08000000
NEW_USER = 0x10000000
NEW_PIDS = 0x20000000
NEW_NETWORK = 0x40000000
"""Kinds of namespaces, for `unshare`."""
NO_SUID, NO_DEVICES, NO_PROGRAMS, BIND, RECURSIVE, SLAVE = 2, 4, 8, 4096, 16384, 1 << 19
"""Flags of `mount`."""

_PARENT_DEATH_SIGNAL, _DROP_BOUNDING, _SUBREAPER, _NO_NEW_PRIVILEGES = 1, 24, 36, 38
_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE, _READ_ONLY, _SET_MOUNT_ATTRIBUTES = -100, 0x8000, 1, 442
_CAPABILITIES_3 = 0x20080522


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, call: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}")


def unshare(kinds: int) -> None:
    """Move this process into new namespaces; of process ids, its children only."""
    _check(_library().unshare(kinds), "unshare")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """Mount a file system."""
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind, options)]
    _check(_library().mount(*words[:3], ctypes.c_ulong(flags), words[3]), f"mount {target}")


def replace_root(new: str, old: str) -> None:
    """Make the mount `new` the root; the root so far appears at `old`, a folder in it."""
    _check(_library().pivot_root(os.fsencode(new), os.fsencode(old)), "pivot_root")


def unmount(target: str) -> None:
    """Take a file system out of sight."""
    _check(_library().umount2(os.fsencode(target), _DETACH), f"umount {target}")


def make_read_only(target: str) -> None:
    """Make a mount, and all mounts below it, read-only; Linux 5.12 or newer."""
    _set_mount(target, _AT_RECURSIVE, to_set=_READ_ONLY, to_clear=0)


def make_writable(target: str) -> None:
    """Make a single mount writable again."""
    _set_mount(target, 0, to_set=0, to_clear=_READ_ONLY)


def _set_mount(target: str, flags: int, *, to_set: int, to_clear: int) -> None:
    attributes = (ctypes.c_uint64 * 4)(to_set, to_clear, 0, 0)  # then propagation and a namespace of users
    result = _library().syscall(
        ctypes.c_long(_SET_MOUNT_ATTRIBUTES),
        ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(os.fsencode(target)),
        ctypes.c_uint(flags),
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )
    _check(result, f"mount_setattr {target}")


def die_with_parent(number: signal.Signals) -> None:
    """Get this signal when the parent ends."""
    _check(_library().prctl(_PARENT_DEATH_SIGNAL, ctypes.c_ulong(number), 0, 0, 0), "prctl")


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends."""
    _check(_library().prctl(_SUBREAPER, ctypes.c_ulong(1), 0, 0, 0), "prctl")


def drop_privileges() -> None:
    """Give up every capability, for this process and all programs it starts."""
    library = _library()
    for capability in range(64):
        library.prctl(_DROP_BOUNDING, ctypes.c_ulong(capability), 0, 0, 0)  # those that do not exist are refused
    _check(library.prctl(_NO_NEW_PRIVILEGES, ctypes.c_ulong(1), 0, 0, 0), "prctl")
    header, none = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0), (ctypes.c_uint32 * 6)()
    _check(library.capset(header, none), "capset")
