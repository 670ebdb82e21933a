"""What a task is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from steadyrl.errors import UserError

Split = str
"""`train`, `held_out`, or the name of a further set that is only evaluated."""
FinishReason = Literal["stop", "length"]
Message = Mapping[str, str]
"""A turn of a conversation: its `role` and its `content`."""
Graded = float | Mapping[str, Any]
"""What a verifier returns: a number, or a mapping with the number `score` and further numbers that are logged."""


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
    messages: tuple[Message, ...] | None = None
    """The conversation as the data hold it, for the chat template; None: the question is its one message."""
    accepted: tuple[str, ...] = ()
    """Every accepted answer, where there are several; `answer` is the first of them."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """The columns of the data row, for reward functions that ask for them."""
    place: str = field(default="", compare=False)
    """Where the data hold it, such as `pairs.jsonl, line 7`; empty for problems that are made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """How a response came about, beside its text."""

    prompt_text: str = ""
    """The prompt as the model saw it, chat template included."""
    finish_reason: FinishReason = "stop"
    """`stop`: the response ended with an end token; `length`: it was cut at the limit."""
    token_ids: tuple[int, ...] = ()
    """The sampled tokens."""


WHOLE = Context()
"""For a response that ended with an end token, if nothing else is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RightResponses:
    """What a verifier must pay for one problem: the audit tries it.

    For instance, `RightResponses(forms=(("bare", "72"), ("boxed", r"\boxed{72}")))`.
    """

    forms: tuple[tuple[str, str], ...] = ()
    """The name of a form and the response written in this form; none: the problem has no reference answer."""
    every: bool = True
    """Every form must be paid. Off: one of them is enough, for a user's own function may want a certain form."""
    only: bool = True
    """No other answer is right. Off: the answer of another problem, or half an answer, may be right too."""


class Task(Protocol):
    """Training problems, held-out problems, and a verifier.

    Both splits are pure functions of the task's parameters, the seed and the index. So a resumed run and a worker
    process see the same problems without shared state.
    """

    def size(self, split: Split) -> int | None:
        """How many problems the split has; None: every index is one. No problem is in both splits."""
        ...

    def example(self, split: Split, index: int) -> Example:
        """The problem at `index`."""
        ...

    def reward(self, split: Split, index: int, completion: str, context: Context = WHOLE) -> Graded:
        """Reward of a response to the problem at `index`."""
        ...

    def right_responses(self, split: Split, index: int) -> RightResponses:
        """Responses to the problem at `index` that are right, in the forms that the task promises to pay."""
        ...

    def final_answer(self, completion: str, context: Context = WHOLE) -> str | None:
        """What a response gives as its answer, for the votes of maj@k; None where it gives none."""
        ...
