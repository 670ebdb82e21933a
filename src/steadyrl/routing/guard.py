"""Who may run a model whose routers are watched or replayed, and when its backward pass may come.

The hooks of `routing` are on the model's blocks: whoever runs them meets the hooks. So all contexts that are open on a
model belong to one thread, at most one of them replays, and no checkpoint may leave a recomputation for later.
"""

import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from steadyrl.errors import UserError

_OPEN = "_contexts_of_routing"
"""Where a model's first block holds its `Open`, while there is one."""


class RoutingError(UserError):
    """Routes, or a use of them, that do not fit the model. The message names the field and the sizes."""


class Open:
    """The contexts that are open on a model. All are of one thread."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.thread, self.name = threading.get_ident(), threading.current_thread().name
        self.contexts, self.replaying = 0, False
        self.unfinished: weakref.WeakSet[Any] = weakref.WeakSet()  # reentrant checkpoints that will run blocks again

    def refuse_other_threads(self) -> None:
        """The thread of the contexts may go on, and those in which autograd recomputes for it."""
        if threading.get_ident() == self.thread:
            return
        here = threading.current_thread()
        if isinstance(here, threading._DummyThread) and torch._C._current_graph_task_id() != -1:
            return
        raise RoutingError(
            f"{self.model}: thread {self.name!r} records or replays routes on this model, so thread {here.name!r} "
            "cannot use it now: wait until the other has left its context, or give each thread its own model"
        )

    def note_checkpoints(self) -> None:
        """Remember reentrant checkpoints, which run a block without a graph, until their backward runs it again."""
        frame = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            if code.co_name in ("forward", "backward") and code.co_varnames[:1] == ("ctx",):
                node = frame.f_locals["ctx"]
                if isinstance(node, torch.autograd.function.FunctionCtx):
                    (self.unfinished.add if code.co_name == "forward" else self.unfinished.discard)(node)
            frame = frame.f_back

    def refuse_unfinished(self) -> None:
        """What has no graph any more is never recomputed, and not in the set either."""
        if self.replaying and len(self.unfinished):
            raise RoutingError(
                f"{self.model}: a reentrant checkpoint recomputes its blocks in the backward pass, and outside of "
                "replay they would route natively: call backward inside the context"
            )


@contextmanager
def opened(model: str, block: nn.Module | None, *, replaying: bool) -> Iterator[Open]:
    """One more context on a model; `block` is its first of experts, None if it has none.

    Raises:
        RoutingError: another thread has a context open on it, or routes are being replayed already.
    """
    if block is None:
        yield Open(model)
        return
    slot = vars(block)
    held: Open = slot.setdefault(_OPEN, Open(model))  # in one step: of two threads, one is first
    held.refuse_other_threads()
    if replaying and held.replaying:
        raise RoutingError(f"{model}: routes are being replayed already; leave that context before others are replayed")
    outer, held.contexts, held.replaying = held.replaying, held.contexts + 1, held.replaying or replaying
    try:
        yield held
    finally:
        held.contexts, held.replaying = held.contexts - 1, outer
        if not held.contexts:
            del slot[_OPEN]
