"""What a task is."""

from dataclasses import dataclass
from typing import Protocol


class TaskError(ValueError):
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
    """A stream of training problems, a held-out set, and a verifier.

    Both streams are pure functions of the task's parameters, the seed and the index, so that a resumed run, and a
    worker process that only scores, see the same problems without sharing any state.
    """

    @property
    def train_size(self) -> int | None:
        """How many training problems there are; None: any index is one."""
        ...

    @property
    def held_out_size(self) -> int | None:
        """How many held-out problems there are; None: any index is one. None of them is a training problem."""
        ...

    def train(self, index: int) -> Example:
        """The training problem at `index`."""
        ...

    def held_out(self, index: int) -> Example:
        """The held-out problem at `index`."""
        ...

    def score(self, example: Example, completion: str) -> float:
        """Reward of a response, in [0, 1]."""
        ...
