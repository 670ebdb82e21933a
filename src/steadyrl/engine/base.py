"""What an inference engine is."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
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

    @property
    def facts(self) -> Mapping[str, str | int | float]:
        """What is in force: engine, version, device, and the precision of weights, activations and cache."""
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

    def close(self) -> None:
        """Give back memory and processes. A session calls it at its end, however it ends; twice does no harm."""
        ...


def check_prompts(
    prompts: Sequence[Sequence[int]],
    *,
    vocabulary: int,
    context: int | None,
    rope: int | None = None,
    max_new_tokens: int,
) -> None:
    """Refuse prompts that a model cannot answer.

    Args:
        prompts: token ids.
        vocabulary: how many there are.
        context: most tokens of prompt and response together; None: any number.
        rope: as many tokens as are rotated by the same factors, see `decoding.rope_length`; None: any number.
        max_new_tokens: longest response.

    Raises:
        EngineError: a prompt is empty, holds an unknown token, or leaves no room for a response; it carries its place.
    """
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise EngineError(f"prompt {i} is empty", prompt=i)
        if max(prompt) >= vocabulary or min(prompt) < 0:
            raise EngineError(f"prompt {i} holds a token id outside the vocabulary of {vocabulary}", prompt=i)
        if context is not None and len(prompt) + max_new_tokens > context:
            raise EngineError(
                f"prompt {i} has {len(prompt)} tokens; with max_new_tokens = {max_new_tokens} it exceeds "
                f"the model's context of {context}. Shorten the prompt or lower max_new_tokens",
                prompt=i,
            )
        if rope is not None and len(prompt) + max_new_tokens > rope:
            raise EngineError(
                f"prompt {i} has {len(prompt)} tokens; with max_new_tokens = {max_new_tokens} it can cross {rope} "
                "tokens, where this model's rope changes the factors of all positions, and a cache keeps the old ones. "
                "Shorten the prompt or lower max_new_tokens",
                prompt=i,
            )


def check_weights(weights: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> None:
    """Refuse weights that are not those of the model, before any is taken over.

    Raises:
        EngineError: one is missing, unknown or of another shape.
    """
    if shapes.keys() != weights.keys():
        odd = sorted(shapes.keys() ^ weights.keys())
        raise EngineError(f"weights do not fit the model: {odd[:4]} missing or unknown ({len(odd)} in all)")
    for name, shape in shapes.items():
        if weights[name].shape != shape:
            raise EngineError(f"{name} has shape {tuple(weights[name].shape)}, the engine's is {tuple(shape)}")
