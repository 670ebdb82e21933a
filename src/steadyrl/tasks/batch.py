"""The requests of one call for rewards, and the rewards so far; how both are written on a worker's pipes."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from steadyrl.tasks.base import WHOLE, Context, Split

_LARGEST_CHUNK = 64  # requests per message: enough to hide the pipes, few enough to share between workers
_SMALLEST_CHUNKS = 8  # of a worker's share


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardRequest:
    """A response that waits for its reward."""

    split: Split
    """Which problems `index` counts."""
    index: int
    """Which problem it answers."""
    completion: str
    """Its text."""
    context: Context = WHOLE
    """How it came about."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reward:
    """What a response earned."""

    value: float | None
    """None where the verifier failed: a missing reward is not a reward of 0."""
    failure: str | None
    """Why there is no reward, such as `raised ValueError: …` or `took longer than 10 s`."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Further numbers that the verifier returned, by name."""

    @classmethod
    def failed(cls, failure: str) -> Self:
        """No reward, and why."""
        return cls(value=None, failure=failure)


class Batch:
    """The requests of one call, the positions nobody has taken yet, and the rewards so far."""

    def __init__(self, requests: list[dict[str, Any]], *, grouped: bool) -> None:
        self.requests, self._grouped = requests, grouped
        self.waiting = deque(range(len(requests)))
        self.rewards: dict[int, Reward] = {}
        self.alone: set[int] = set()
        """Positions that are sent one by one."""
        self.fatal: set[int] = set()
        """Positions at which a worker died."""
        self._positions = {request["id"]: position for position, request in enumerate(requests)}

    def position(self, number: object) -> int:
        """The position of a request's id; −1 where there is none."""
        return self._positions.get(number, -1) if isinstance(number, int) else -1

    def next_chunk(self, workers: int) -> list[int]:
        """Take positions for one message: the next few, or all responses to one prompt, or one that goes alone.

        The chunks shrink, so that all workers end together, down to an eighth of a worker's share.
        """
        least = len(self.requests) // (_SMALLEST_CHUNKS * workers)
        count = max(1, least, min(_LARGEST_CHUNK, len(self.waiting) // (2 * workers)))
        chunk = [self.waiting.popleft()]
        while self.waiting and not {chunk[0], self.waiting[0]} & self.alone:
            if self._problem(chunk[0]) != self._problem(self.waiting[0]) if self._grouped else len(chunk) >= count:
                break
            chunk.append(self.waiting.popleft())
        return chunk

    def put_back(self, positions: Sequence[int]) -> None:
        """Let another worker take them, before the others."""
        self.waiting.extendleft(reversed(positions))

    def take_apart(self, positions: Sequence[int], failure: str) -> None:
        """After a call for several responses failed, have each verified alone; one that was alone has no reward."""
        if len(positions) == 1:
            self.rewards[positions[0]] = Reward.failed(failure)
        else:
            self.alone.update(positions)
            self.put_back(positions)

    def _problem(self, position: int) -> tuple[str, int]:
        return self.requests[position]["split"], self.requests[position]["index"]


def wire(request: RewardRequest, *, tokens: bool) -> dict[str, Any]:
    """A request as it is sent; token ids only to a function that wants them."""
    known = request.context
    context = (known.prompt_text, known.finish_reason, known.token_ids if tokens else ())
    return {"split": request.split, "index": request.index, "completion": request.completion, "context": context}


def as_message(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Requests for one worker; a prompt that several of them answer is only in the first."""
    shown: str | None = None
    message = []
    for request in requests:
        if request["context"] and request["context"][0] == shown:
            request = request | {"context": (None, *request["context"][1:])}
        elif request["context"]:
            shown = request["context"][0]
        message.append(request)
    return message


def reward_in(message: Mapping[str, Any]) -> Reward | None:
    """The reward in a worker's message; None if it is none."""
    match message:
        case {"failure": str(failure)}:
            return Reward.failed(failure)
        case {"reward": float(reward), **rest} if rest.keys() <= {"id", "parts"}:
            return Reward(value=reward, failure=None, parts=rest.get("parts", {}))
    return None
