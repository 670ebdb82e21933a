"""What the engines of this package do alike: they check requests, remember which wait, and count whole updates only."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from steadyrl.engine.base import EngineError, Request
from steadyrl.model.decoding import rope_length


class BaseEngine:
    """The requests and the weights of an engine; how it samples is its own. See `engine.base.Engine`."""

    def __init__(self, model: PreTrainedModel):
        config = model.config.get_text_config()
        self._vocabulary: int = config.vocab_size
        self._context: int | None = getattr(config, "max_position_embeddings", None)
        self._rope = rope_length(config)
        self._shapes = {name: weight.shape for name, weight in model.named_parameters()}
        self._waiting: dict[int, Request] = {}
        self._version, self._whole = 0, False
        self._facts: dict[str, str | int | float] = {}

    @property
    def policy_version(self) -> int:
        """Gradient steps behind the weights it holds."""
        return self._version

    @property
    def facts(self) -> Mapping[str, str | int | float]:
        """What the engine uses."""
        return self._facts

    def submit(self, requests: Sequence[Request]) -> None:
        """Take requests, or none of them."""
        self._require_whole()
        taken = set(self._waiting)
        for request in requests:
            if request.place in taken:
                raise EngineError(f"place {request.place} is taken: another request with it waits for its answer")
            taken.add(request.place)
            self._check(request)
        self._add(requests)
        self._waiting.update({request.place: request for request in requests})

    def update_weights(self, tensors: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        """Take over the trainer's weights; the version changes once all of them are in place."""
        self._require_idle("update the weights")
        self._whole = False  # until all is well: whatever is raised below, some tensors may be new and others old
        self._take_over(checked_weights(tensors, self._shapes))
        self._version, self._whole = version, True

    def _add(self, requests: Sequence[Request]) -> None:
        """Prepare for requests that have been checked, and are about to wait."""
        raise NotImplementedError

    def _take_over(self, tensors: Iterator[tuple[str, Tensor]]) -> None:
        """Take every tensor of an update."""
        raise NotImplementedError

    def _require_whole(self) -> None:
        if not self._whole:
            raise EngineError(
                "the engine holds no whole weights: the last update failed, or it slept. Update its weights"
            )

    def _require_idle(self, what: str) -> None:
        if self._waiting:
            raise EngineError(f"{len(self._waiting)} requests wait for their answers: collect them before you {what}")

    def _check(self, request: Request) -> None:
        """Refuse a request that the model cannot answer; the error carries its place."""
        ids, new, name = request.token_ids, request.sampling.max_new_tokens, f"prompt {request.place}"
        fault = None
        if request.place < 0 or request.responses < 1:
            fault = f"{name}: place = {request.place} must be at least 0, responses = {request.responses} at least 1"
        elif not ids:
            fault = f"{name} is empty"
        elif max(ids) >= self._vocabulary or min(ids) < 0:
            fault = f"{name} holds a token id outside the vocabulary of {self._vocabulary}"
        elif self._context is not None and len(ids) + new > self._context:
            fault = (
                f"{name} has {len(ids)} tokens; with max_new_tokens = {new} it exceeds "
                f"the model's context of {self._context}. Shorten the prompt or lower max_new_tokens"
            )
        elif self._rope is not None and len(ids) + new > self._rope:
            fault = (
                f"{name} has {len(ids)} tokens; with max_new_tokens = {new} it can cross {self._rope} "
                "tokens, where this model's rope changes the factors of all positions, and a cache keeps the old ones. "
                "Shorten the prompt or lower max_new_tokens"
            )
        if fault is not None:
            raise EngineError(fault, prompt=request.place)


def checked_weights(
    tensors: Iterable[tuple[str, Tensor]], shapes: Mapping[str, torch.Size]
) -> Iterator[tuple[str, Tensor]]:
    """Pass the tensors of an update through, one by one.

    Raises:
        EngineError: one is unknown, comes twice, has another shape or, at the end, is missing.
    """
    missing = dict(shapes)
    for name, tensor in tensors:
        if name not in shapes:
            raise EngineError(f"{name} is no weight of the model. Send its named parameters, and nothing else")
        if name not in missing:
            raise EngineError(f"{name} came twice in one update of weights. Send each parameter once")
        if tensor.shape != missing.pop(name):
            raise EngineError(f"{name} has shape {tuple(tensor.shape)}, the engine's is {tuple(shapes[name])}")
        yield name, tensor
    if missing:
        raise EngineError(
            f"the update of weights lacks {len(missing)} of {len(shapes)} parameters, such as {sorted(missing)[:4]}"
        )
