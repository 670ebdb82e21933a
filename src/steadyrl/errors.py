"""The two ends of a command that goes wrong: a mistake that the user can put right, and a run that had to stop."""

import errno


class UserError(ValueError):
    """Something that the user can put right; the command line prints the message alone and exits with status 2."""


class RunStopped(RuntimeError):
    """Something that a run met and no recipe caused; the command line prints the message and exits with status 1."""


NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system says when there is no room for a write."""
