"""A cache for decoding one token at a time, which is not copied at every step."""

import inspect
from typing import cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from steadyrl.errors import UserError
from steadyrl.model.loading import decoder_of

E4M3_MAX = 448.0


class ReservedLayer(DynamicLayer):
    """Keys and values of one full-attention layer, written in place into room reserved for the whole sequence."""

    def __init__(self, length: int, fp8: bool):
        super().__init__()
        self._length, self._fp8 = length, fp8
        self._room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append, and return everything so far; with `fp8`, rounded to e4m3 at unit scale, as vLLM's cache does."""
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        assert self.keys is not None
        assert self.values is not None
        start, end = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if self._room is None:
            self._room = (self._reserve(self.keys), self._reserve(self.values))
        for buffer, new in zip(self._room, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = self._rounded(new)
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._room)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take these rows, in this order, some perhaps twice; fewer rows move together in the room there is."""
        super().reorder_cache(cast(torch.LongTensor, beam_idx))  # the library names the type of the host alone
        if self._room is None or self.keys is None or self.values is None or len(beam_idx) > len(self._room[0]):
            self._room = None
            return
        self._room = (self._refill(self._room[0], self.keys), self._refill(self._room[1], self.values))

    def _reserve(self, held: Tensor) -> Tensor:
        return self._refill(held.new_empty(*held.shape[:2], self._length, held.shape[3]), held)

    def _refill(self, buffer: Tensor, held: Tensor) -> Tensor:
        buffer = buffer[: len(held)]
        buffer[:, :, : held.shape[2]] = held
        return buffer

    def _rounded(self, new: Tensor) -> Tensor:
        if not self._fp8:
            return new
        return new.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).to(new.dtype)


def cache_argument(model: PreTrainedModel) -> str:
    """Return the name by which the model's decoder takes a cache; some state-space families have their own."""
    named = inspect.signature(decoder_of(model).forward).parameters
    return "cache_params" if "cache_params" in named and "past_key_values" not in named else "past_key_values"


def rope_length(config: PreTrainedConfig) -> int | None:
    """Return the most tokens of a sequence whose positions are all rotated by the same factors; None: any number.

    `longrope` takes other factors for every position of a sequence that is longer than the length of its pre-training,
    `dynamic` for one that is longer than the context. Keys in a cache keep the factors that they were rotated by, so a
    sequence that crosses this length is decoded by another policy than a forward computes.
    """
    text = config.get_text_config()
    given = getattr(text, "rope_parameters", None) or {}
    kinds = [kind for kind in given.values() if isinstance(kind, dict)] or [given]
    context, found = getattr(text, "max_position_embeddings", None), []
    for kind in kinds:
        name = str(kind.get("rope_type", "default"))
        if name == "longrope":
            found.append(kind.get("original_max_position_embeddings") or context)
        elif "dynamic" in name:
            found.append(context)
    return min((length for length in found if length is not None), default=None)


def reserved_cache(model: PreTrainedModel, *, length: int, fp8: bool) -> DynamicCache:
    """An empty cache for sequences of at most `length` tokens; layers that are not full attention keep their own kind.

    Raises:
        UserError: an FP8 cache was asked for, and the model has layers of another kind.
    """
    cache = DynamicCache(config=model.config)
    others = sorted({type(layer).__name__ for layer in cache.layers if type(layer) is not DynamicLayer})
    if fp8 and others:
        raise UserError(
            f'engine.kv_precision = "fp8" is for full attention; {type(model).__name__} has {others}. Use "native"'
        )
    cache.layers = [ReservedLayer(length, fp8) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
