"""Attention as training and decoding need it, in place of transformers' `sdpa`, which it otherwise is.

Training feeds one row of positions, in which sequences lie end to end and those with the same prompt share it. Only
attention sees sequences: it unfolds the row into blocks of sequences of nearly equal length, each a batch of plain
causal attention without a mask, and folds the result back.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from steadyrl.model.packing import pack_sequences
from steadyrl.types import TokenBatch

NAME = "steadyrl"


class _ComputesWithMask(Exception):
    """A model took the empty mask for one with columns."""


class _EmptyMask(Tensor):
    """The empty mask of a packed row, while it is tried: an operation that fails on it tells that the model uses it.

    Every other error of the trial, a lack of memory included, is left alone.
    """

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return super().__torch_function__(func, types, args, kwargs or {})
        except torch.OutOfMemoryError:
            raise
        except (IndexError, RuntimeError, TypeError) as error:
            raise _ComputesWithMask(str(error)) from error


def attend_by_block(model: PreTrainedModel) -> None:
    """Let a model take packed rows, if all its layers use full causal attention by torch's `sdpa`.

    Models with recurrent layers, sliding windows or special attention are not changed. Neither is a model that
    qualifies but mixes the sequences of a row: see `attends_by_block`.
    """
    if not may_attend_by_block(model):
        return
    use_own_attention(model)
    if not _keeps_apart(model):
        model.set_attn_implementation("sdpa")  # what it was


def may_attend_by_block(model: PreTrainedModel) -> bool:
    """Whether a model says that it qualifies for packed rows; it may be one without weights."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    windowed = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
    full = kinds == {"full_attention"} and not windowed
    return model.config._attn_implementation == "sdpa" and full and model._supports_attention_backend


def describe_rows(packed: bool) -> str:
    """Say how training feeds the model, for the plan and for the facts of a run."""
    return "packed rows, a prompt once for all its responses" if packed else "a row for each sequence, padded"


@torch.no_grad()
def _keeps_apart(model: PreTrainedModel) -> bool:
    """Whether a sequence says the same in a row with another as by itself, and not as it would after the other."""
    first, second = (1, 0, 1, 0), (0, 1, 1)
    (row,) = pack_sequences([(*first, 0), (*second, 0)], [1, 1], micro_tokens=8, one_block=False)
    fed = packed_row(row.to(model.device))
    fed["attention_mask"] = fed["attention_mask"].as_subclass(_EmptyMask)
    try:
        packed = model(**fed, use_cache=False).logits[0, len(first) :].as_subclass(Tensor)
    except _ComputesWithMask:
        return False
    alone, after = (
        model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, -len(second) :]
        for ids in (second, (*first, *second))
    )
    return bool((packed - alone).abs().max() < 0.1 * (after - alone).abs().max())


def attends_by_block(model: PreTrainedModel) -> bool:
    """Whether a row may hold several blocks; else a forward takes one block, a row for each sequence."""
    return model.config._attn_implementation == NAME


def use_own_attention(model: PreTrainedModel) -> None:
    """Attend by this module, where the model would use torch's scaled dot product attention."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


def packed_row(batch: TokenBatch) -> dict[str, Any]:
    """Arguments of a forward over a packed row. The mask is empty: it keeps transformers from making one."""
    empty = torch.empty(1, 1, 0, 0, dtype=torch.bool, device=batch.input_ids.device)
    row = {"input_ids": batch.input_ids[None], "position_ids": batch.position_ids[None]}
    return row | {"packed": batch, "attention_mask": empty}


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    packed: TokenBatch | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    if packed is not None:
        return _blockwise(query, key, value, scaling, packed), None
    if query.shape[2] == 1:
        return _single_query(query, key, value, attention_mask, scaling), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


def _blockwise(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, packed: TokenBatch) -> Tensor:
    """Causal attention inside each sequence, from [1, heads, positions, width] to [1, positions, heads, width]."""
    sizes = [sequences * length for sequences, length in packed.blocks]
    unfolded = (x[0].transpose(0, 1).index_select(0, packed.cells).split(sizes) for x in (query, key, value))
    attended = []
    for block, *parts in zip(packed.blocks, *unfolded, strict=True):
        q, k, v = (part.unflatten(0, block).transpose(1, 2) for part in parts)
        if (
            q.is_cuda and q.dtype == torch.float32
        ):  # no kernel there shares keys in float32, but the one with L × L scores
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        mixed = scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        attended.append(mixed.transpose(1, 2).flatten(0, 1))
    return torch.cat(attended).index_select(0, packed.home)[None]


def _single_query(
    query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None
) -> Tensor:
    """Attention of one query per sequence, without repeating keys and values for the heads that share them.

    That copy, as large as the cache, is what decoding with `sdpa` spends most of its time on as soon as the prompts
    have different lengths.
    """
    batch, heads, _, width = query.shape
    shared = key.shape[1]
    scale = width**-0.5 if scaling is None else scaling
    scores = (query * scale).view(batch, shared, heads // shared, width) @ key.transpose(2, 3)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, -torch.inf)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    return (weights @ value).view(batch, 1, heads, value.shape[-1])


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
