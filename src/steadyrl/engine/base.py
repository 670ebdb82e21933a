"""What an inference engine is."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from steadyrl.errors import UserError
from steadyrl.types import Completion, Sampling


class EngineError(UserError):
    """A request or an update that the engine cannot serve. The message names the field, the value and the way out."""

    def __init__(self, message: str, *, prompt: int | None = None):
        super().__init__(message)
        self.prompt = prompt
        """Place of the prompt that is to blame, where one is."""


class Engine(Protocol):
    """Samples from μ: the policy as the inference engine computes it."""

    @property
    def policy_version(self) -> int:
        """Gradient steps behind the weights it holds."""
        ...

    def generate(
        self, prompts: Sequence[Sequence[int]], *, responses: int, sampling: Sampling, seed: int
    ) -> list[list[Completion]]:
        """`responses` completions for each prompt, in the order of the prompts.

        The same weights, prompts, sampling and seed give the same completions.

        Raises:
            EngineError: a prompt is empty, holds an unknown token, or leaves no room for a response.
        """
        ...

    def load_weights(self, weights: Mapping[str, Tensor], *, policy_version: int) -> None:
        """Take over the trainer's weights. The version changes only once all of them are in place.

        Raises:
            EngineError: a weight is missing, unknown or of another shape; nothing was changed then.
        """
        ...
