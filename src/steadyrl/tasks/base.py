"""What a task is."""

from dataclasses import dataclass
from typing import Literal, Protocol

from steadyrl.errors import UserError

Split = Literal["train", "held_out"]


class TaskError(UserError):
    """A task that cannot be built or read. The message names the file or field, the value and the way out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One problem.

    For instance, of the chains: `Example(question="0-4+5=", answer="1", solution="0-4=6;6+5=1;>1")`.
    """

    question: str
    """What the model is asked, before any chat template."""
    answer: str
    """The reference answer, for people to read; the task's own verifier decides."""
    solution: str
    """A response worth imitating in the cold start: a worked solution, or the answer."""


class Task(Protocol):
    """Training problems, held-out problems, and a verifier.

    Both splits are pure functions of the task's parameters, the seed and the index, so that a resumed run,
    and a worker process that only scores, see the same problems without sharing any state.
    """

    def size(self, split: Split) -> int | None:
        """How many problems the split has; None: every index is one. No problem is in both splits."""
        ...

    def example(self, split: Split, index: int) -> Example:
        """The problem at `index`."""
        ...

    def score(self, split: Split, index: int, completion: str) -> float:
        """Reward of a response to the problem at `index`, in [0, 1]."""
        ...
