"""Groups of responses, and what they earned."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from steadyrl.tasks.base import Context, Example, TaskError
from steadyrl.types import Completion


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """A prompt and the responses to it."""

    index: int
    """Which problem of its split."""
    example: Example
    """The problem."""
    prompt_text: str
    """What the model was shown: the problem as the chat template renders it."""
    prompt_ids: tuple[int, ...]
    """Its tokens."""
    completions: tuple[Completion, ...]
    """The responses."""

    def context(self, completion: Completion) -> Context:
        """Return what a verifier may ask about a response beside its text."""
        return Context(
            prompt_text=self.prompt_text, finish_reason=completion.finish_reason, token_ids=completion.token_ids
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Rewards:
    """What the responses of several groups earned."""

    values: Float[Tensor, "groups responses"]
    """Reward of each; 0 where it is missing."""
    known: Bool[Tensor, "groups responses"]
    """Which responses have a reward; the verifier failed on the others."""
    parts: Mapping[str, Float[Tensor, "groups responses"]]
    """Further numbers that the verifier returned, by name; NaN where it returned none. One that has the name of a
    metric of ours, such as `mean`, is called `mean_part`."""
    failures: tuple[str | None, ...]
    """Why the verifier failed, for each response; None where it did not."""

    @property
    def failed(self) -> tuple[str, ...]:
        """The reasons alone, of the responses that the verifier failed on."""
        return tuple(reason for reason in self.failures if reason is not None)

    def require(self, *, limit: float) -> None:
        """Stop a run whose verifier fails too often.

        Raises:
            TaskError: the verifier failed on more than the share `limit` of the responses.
        """
        if self.too_many_failures(limit=limit):
            raise TaskError(
                f"the verifier failed on {len(self.failed)} of {len(self.failures)} responses, above "
                f"verifier.max_failures = {limit}; the first: {self.failed[0]}"
            )

    def too_many_failures(self, *, limit: float) -> bool:
        """Tell whether the verifier failed on more than the share `limit` of the responses."""
        return len(self.failed) > limit * len(self.failures)
