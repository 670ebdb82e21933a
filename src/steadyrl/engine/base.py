"""The protocol of a sampling engine, its requests and its answers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from steadyrl.errors import UserError
from steadyrl.types import Completion, Sampling


class EngineError(UserError):
    """A request or an update that the engine cannot serve. The message names the field, the value and the way out."""

    def __init__(self, message: str, *, prompt: int | None = None):
        super().__init__(message)
        self.prompt = prompt
        """Place of the prompt that is to blame, where one is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A prompt that an engine is to answer."""

    token_ids: tuple[int, ...]
    """The prompt."""
    responses: int
    """How many completions; each has its own random numbers."""
    sampling: Sampling
    """How they are sampled."""
    seed: int
    """Names the random numbers."""
    place: int
    """Which row of the random numbers of `seed` it gets, from 0; no two requests that wait have the same place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """All completions of one request."""

    place: int
    """The request's."""
    completions: tuple[Completion, ...]
    """As many as were asked for."""


@runtime_checkable  # for the type checks of the tests
class Engine(Protocol):
    """Samples from μ: the policy as the inference engine computes it.

    The same weights, prompt, sampling, seed and place give the same answer, whatever else is requested. Who is
    decoded together changes the order of sums: log-probabilities may differ in their last bits, and so may a token
    that hangs by them.
    """

    @property
    def policy_version(self) -> int:
        """Gradient steps behind the weights it holds."""
        ...

    @property
    def facts(self) -> Mapping[str, str | int | float]:
        """What the engine uses: its name, version, device, and the precision of weights, activations and cache."""
        ...

    def submit(self, requests: Sequence[Request]) -> None:
        """Take requests; `collect` answers them. More may come while answers are collected.

        Raises:
            EngineError: a prompt is empty, holds an unknown token, or leaves no room for a response; a place is taken;
                or the engine holds no whole weights. None of the requests is taken then.
        """
        ...

    def collect(self) -> Iterator[Answer]:
        """Answer the requests that wait, each as it ends. Closing the iterator drops those without an answer."""
        ...

    def update_weights(self, tensors: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        """Take over the trainer's weights, one tensor after the other; the version changes last.

        Args:
            tensors: every parameter of the model once, by its name, in any order.
            version: gradient steps behind them.

        Raises:
            EngineError: requests wait for answers, and nothing was changed; or a tensor is missing, unknown or of
                another shape, and the engine takes no request until a whole update has succeeded.
        """
        ...

    def sleep(self) -> None:
        """Give back memory that only sampling needs, where the engine can. No request may wait.

        The weights may be lost: before the next request come an update of weights and `wake`, in this order.
        """
        ...

    def wake(self) -> None:
        """Take the memory again; without `sleep` before, nothing happens."""
        ...

    def close(self) -> None:
        """Give back memory and processes. A session calls it at its end, however it ends; twice does no harm."""
        ...


def generate(
    engine: Engine, prompts: Sequence[Sequence[int]], *, responses: int, sampling: Sampling, seed: int
) -> list[list[Completion]]:
    """Return `responses` completions for each prompt, in the order of the prompts, which are their places.

    Raises:
        EngineError: as `Engine.submit`.
    """
    engine.submit(
        [
            Request(token_ids=tuple(prompt), responses=responses, sampling=sampling, seed=seed, place=place)
            for place, prompt in enumerate(prompts)
        ]
    )
    found = {answer.place: answer.completions for answer in engine.collect()}
    return [list(found[place]) for place in range(len(prompts))]
