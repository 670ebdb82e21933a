"""From requests to vLLM's words, and from its outputs to records."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from steadyrl.engine.base import EngineError, Request
from steadyrl.routing import moe_blocks, route_dtype, slots_of
from steadyrl.types import Completion, Routes


@dataclass(frozen=True, kw_only=True, slots=True)
class Experts:
    """What of vLLM's routes is read: those of the layers that choose."""

    layers: tuple[int, ...]
    """Which of all layers are mixtures of experts, in order."""
    experts: int
    """Experts per layer."""
    slots: int | None
    """Experts per token; None where the model does not say."""


def experts_of(model: PreTrainedModel) -> Experts | None:
    """Return what of the routes of this model is read; None for a dense one."""
    blocks = moe_blocks(model)
    if not blocks:
        return None
    return Experts(
        layers=tuple(_layers_of(model, [block for block, _ in blocks])),
        experts=max(experts for _, experts in blocks),
        slots=slots_of(blocks[0][0]),
    )


def parameters_of(request: Request, *, ends: Iterable[int], own_seed: bool) -> Any:
    """How vLLM is to answer a request.

    Args:
        request: a greedy request is answered once, because all its answers are equal.
        ends: tokens that end a response.
        own_seed: each request has its own seed; its n responses have the next n seeds.
    """
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]
    from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

    sampling = request.sampling
    return SamplingParams(
        n=1 if sampling.temperature == 0.0 else request.responses,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=sampling.max_new_tokens,
        seed=random.Random(f"{request.seed}/{request.place}").getrandbits(62) if own_seed else None,
        stop_token_ids=list(ends),
        ignore_eos=True,  # the recipe says what ends a response, the config does not
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def completions_of(request: Request, output: Any, experts: Experts | None, version: int) -> tuple[Completion, ...]:
    """vLLM's outputs as records, or an error where something is missing from them."""
    greedy = request.sampling.temperature == 0.0
    found = tuple(_completion(request, one, experts, version, greedy=greedy) for one in output.outputs)
    return found * request.responses if greedy else found


def _completion(request: Request, output: Any, experts: Experts | None, version: int, *, greedy: bool) -> Completion:
    ids = tuple(output.token_ids)
    if output.finish_reason not in ("stop", "length"):
        raise EngineError(f"vLLM ended a response with {output.finish_reason!r} after {len(ids)} tokens")
    if output.logprobs is None or tuple(output.logprobs.token_ids) != ids:
        raise EngineError(f"vLLM did not return the log-probability of each of {len(ids)} sampled tokens")
    rows = len(request.token_ids) + len(ids) - 1
    return Completion(
        token_ids=ids,
        logprobs=torch.zeros(len(ids)) if greedy else torch.tensor(output.logprobs.logprobs),
        routes=None if experts is None else read_routes(output.routed_experts, experts, rows=rows),
        finish_reason=output.finish_reason,
        policy_version=version,
    )


def read_routes(found: np.ndarray | None, experts: Experts, *, rows: int) -> Routes:
    """The routes of one completion, [rows, mixture-of-experts layers, slots], in the type that the trainer reads.

    Only what would be lost in this type, or cannot be seen in it, is checked here; `returned.check_answers` checks
    each row.

    Args:
        found: what vLLM returned: [rows, all layers, slots], dense layers filled with anything.
        experts: which layers are read.
        rows: fed positions: tokens of prompt and response, less the last.

    Raises:
        EngineError: there are none, they have other sizes, an id is out of range, or all are zero, as if never written.
    """
    if found is None:
        raise EngineError(f"the engine returned no routes for a sequence of {rows + 1} tokens; R3 needs them")
    shape = (rows, max(experts.layers) + 1, found.shape[-1] if experts.slots is None else experts.slots)
    if found.ndim != 3 or found.shape[0] != rows or found.shape[1] < shape[1] or found.shape[2] != shape[2]:
        raise EngineError(f"the engine returned routes {found.shape}; a sequence of {rows + 1} tokens needs {shape}")
    chosen = found[:, list(experts.layers)]
    least, most = (int(chosen.min()), int(chosen.max())) if chosen.size else (0, 0)
    if least < 0 or most >= experts.experts:
        raise EngineError(
            f"the engine returned expert ids from {least} to {most}; a layer has {experts.experts} experts"
        )
    if chosen.size and most == 0 and experts.experts > 1:
        raise EngineError(f"the engine returned routes of zeros alone for a sequence of {rows + 1} tokens")
    return torch.from_numpy(chosen).to(route_dtype(experts.experts))


def _layers_of(model: PreTrainedModel, blocks: Sequence[nn.Module]) -> list[int]:
    """Which layers of the decoder these blocks are, by the first number in their names."""
    wanted = {id(block) for block in blocks}
    names = [name.split(".") for name, module in model.named_modules() if id(module) in wanted]
    return [int(next(part for part in name if part.isdigit())) for name in names]
