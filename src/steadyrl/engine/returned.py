"""Checks what an engine returns against the request, before the trainer uses it.

`check_answers` runs on the answers of every engine. What passes it cannot end in a traceback, and the trainer never
uses numbers that no policy gives.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from steadyrl.engine.base import Answer, EngineError, Request
from steadyrl.routing import RoutingError, moe_blocks
from steadyrl.routing.check import check_ids, check_shape
from steadyrl.types import Completion, Routes

ROUNDING = 1e-3
"""A log-probability may lie this far above 0."""
LEAST_LOGPROB = -40.0
"""Nats. A token of a lower one is not sampled: all tokens below it together have a chance under 1e-11."""

ROUTE_DTYPES = (torch.uint8, torch.uint16)


class NotFinite(EngineError):
    """A log-probability that is NaN or infinite: the engine errs, or the weights it was given are broken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What an engine was asked for, and for which model."""

    model: PreTrainedModel
    """Its sizes tell which tokens and experts there are."""
    requests: Sequence[Request]
    """All of them, as they were submitted."""
    ends: frozenset[int]
    """Tokens that end a response."""
    policy_version: int
    """The engine's."""


def check_answers(answers: Any, asked: Asked) -> Iterator[Answer]:
    """Pass on each answer that is what was asked for, as it comes; after a wrong one, drop the requests that wait.

    Args:
        answers: what `Engine.collect` returned.
        asked: what the engine was asked for.

    Raises:
        EngineError: the answers, the number of completions, their tokens, log-probabilities, routes, policy version or
            the reason for their end cannot be right. The message names the completion and the field.
    """
    if not isinstance(answers, Iterable):
        raise EngineError(f"the engine returned {_kind(answers)}, not answers")
    try:
        yield from _checked(answers, asked)
    finally:
        if isinstance(answers, Generator):
            answers.close()


def _checked(answers: Iterable[Any], asked: Asked) -> Iterator[Answer]:
    waiting = {request.place: request for request in asked.requests}
    blocks, vocabulary = moe_blocks(asked.model), asked.model.config.get_text_config().vocab_size
    for answer in answers:
        if not isinstance(answer, Answer):
            raise EngineError(f"the engine returned {_kind(answer)}, not an Answer")
        request = waiting.pop(answer.place, None) if type(answer.place) is int else None
        if request is None:
            raise EngineError(f"the engine returned an answer to prompt {answer.place!r}, which does not wait for one")
        flat = _placed(answer, request)
        for where, one in flat:
            _check_tokens(where, one, request, asked, vocabulary)
            _check_tensors(where, one, rows=len(request.token_ids) + len(one.token_ids) - 1, moe=bool(blocks))
        _check_logprobs(flat, greedy=request.sampling.temperature == 0.0)
        if blocks:
            _check_experts(flat, blocks)
        yield answer
    if waiting:
        some, asked_for = sorted(waiting)[:4], len(asked.requests)
        raise EngineError(f"the engine returned no answer to {len(waiting)} of {asked_for} prompts, such as {some}")


Placed = tuple[str, Completion]
"""Which response it is, in words, and the completion."""


def _placed(answer: Answer, request: Request) -> list[Placed]:
    """The completions of an answer, if it has as many as were asked for."""
    found: Any = answer.completions
    if not isinstance(found, tuple):
        raise EngineError(f"the engine returned {_kind(found)} as the responses to prompt {answer.place}, not a tuple")
    if len(found) != request.responses:
        raise EngineError(
            f"the engine returned {len(found)} responses to prompt {answer.place}; {request.responses} were asked"
        )
    for j, one in enumerate(found):
        if not isinstance(one, Completion):
            raise EngineError(
                f"the engine returned {_kind(one)} as response {j} to prompt {answer.place}, not a Completion"
            )
    return [(f"response {j} to prompt {answer.place}", one) for j, one in enumerate(found)]


def _check_tokens(where: str, one: Completion, request: Request, asked: Asked, vocabulary: int) -> None:
    """Token ids, how the response ended, and the policy version."""
    ids: Any = one.token_ids
    if not isinstance(ids, tuple) or set(map(type, ids)) - {int}:
        raise EngineError(f"{where}: the engine returned token_ids of {_kind(ids)}, not a tuple of integers")
    if not ids:
        raise EngineError(f"{where}: the engine returned no token")
    longest = request.sampling.max_new_tokens
    if not 0 <= min(ids) <= max(ids) < vocabulary:
        raise EngineError(
            f"{where}: the engine returned token ids from {min(ids)} to {max(ids)}; the vocabulary has {vocabulary}"
        )
    if len(ids) > longest:
        raise EngineError(f"{where}: the engine returned {len(ids)} tokens; at most {longest} were asked")
    if early := asked.ends & set(ids[:-1]):
        raise EngineError(f"{where}: the engine returned tokens after the end token {min(early)}")
    ended = ids[-1] in asked.ends
    if one.finish_reason != ("stop" if ended else "length") or not (ended or len(ids) == longest):
        raise EngineError(
            f"{where}: the engine returned finish_reason = {one.finish_reason!r} for {len(ids)} of at most {longest} "
            f"tokens, and the last token is {'an' if ended else 'no'} end token"
        )
    if type(one.policy_version) is not int or one.policy_version != asked.policy_version:
        raise EngineError(
            f"{where}: the engine returned policy_version = {one.policy_version!r}; its weights are of version "
            f"{asked.policy_version}"
        )


def _check_tensors(where: str, one: Completion, *, rows: int, moe: bool) -> None:
    """Kinds and shapes of log-probabilities and routes."""
    logprobs: Any = one.logprobs
    if not _has_numbers(logprobs) or not logprobs.is_floating_point():
        raise EngineError(f"{where}: the engine returned logprobs of {_kind(logprobs)}, not a floating-point tensor")
    if logprobs.shape != (len(one.token_ids),):
        raise EngineError(
            f"{where}: the engine returned logprobs of shape {tuple(logprobs.shape)} for {len(one.token_ids)} tokens"
        )
    routes: Any = one.routes
    if routes is None and moe:
        raise EngineError(f"{where}: the engine returned no routes; the model is a mixture of experts")
    if routes is not None and not moe:
        raise EngineError(f"{where}: the engine returned routes; the model is dense")
    if routes is not None and (not _has_numbers(routes) or routes.ndim != 3 or routes.dtype not in ROUTE_DTYPES):
        raise EngineError(
            f"{where}: the engine returned routes of {_kind(routes)}, not unsigned [positions, layers, slots]"
        )
    if routes is not None and len(routes) != rows:
        raise EngineError(f"{where}: the engine returned routes of {len(routes)} positions; {rows} were fed")


def _check_logprobs(flat: Sequence[Placed], *, greedy: bool) -> None:
    """Values of all log-probabilities: finite, at most 0, and likely enough to have been sampled."""
    values = torch.cat([one.logprobs.detach().float().cpu() for _, one in flat])
    least = -ROUNDING if greedy else LEAST_LOGPROB
    wrong = ~((values <= ROUNDING) & (values >= least))  # NaN is neither
    if not wrong.any():
        return
    at = int(wrong.nonzero()[0])
    for where, one in flat:
        if at < len(one.logprobs):
            needed = "a greedy token's is 0" if greedy else f"a sampled token's lies between {least:g} and 0"
            raise (EngineError if one.logprobs[at].isfinite() else NotFinite)(
                f"{where}: the engine returned the log-probability {float(one.logprobs[at])} for token {at}; {needed}"
            )
        at -= len(one.logprobs)


def _check_experts(flat: Sequence[Placed], blocks: list[tuple[nn.Module, int]]) -> None:
    """Layers, slots and ids of all routes at once; one response after the other only to name the wrong one."""
    every = [(where, one.routes) for where, one in flat if one.routes is not None]
    if len({(routes.dtype, routes.shape[1:]) for _, routes in every}) == 1:
        try:
            _check_routes(torch.cat([routes for _, routes in every]), blocks)
            return
        except RoutingError:
            pass  # the first that is wrong is named below
    for where, routes in every:
        try:
            _check_routes(routes, blocks)
        except RoutingError as error:
            raise EngineError(f"{where}: the engine returned wrong routes: {error}") from error


def _check_routes(routes: Routes, blocks: list[tuple[nn.Module, int]]) -> None:
    check_shape(routes, blocks)
    check_ids(routes, blocks)


def _has_numbers(value: Any) -> bool:
    """Whether it is a tensor that stores each of its numbers: not sparse, and not without data."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def _kind(value: Any) -> str:
    if isinstance(value, Tensor) and not _has_numbers(value):
        return f"a tensor without data ({value.device})" if value.is_meta else f"a tensor of layout {value.layout}"
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} and shape {tuple(value.shape)}"
    return type(value).__name__
