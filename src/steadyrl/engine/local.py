"""The embedded engine: batched decoding in this process, for models and machines of modest size.

Each prompt is computed once, however many responses it gets. Sequences that have ended leave the batch. Randomness
belongs to the sequence (one uniform number for each of its tokens), so it does not depend on who else is decoded.
"""

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from typing import ClassVar, Literal

import torch
import transformers
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from steadyrl.engine.base import Answer, Request
from steadyrl.engine.common import BaseEngine
from steadyrl.engine.decoding_check import check_decoding
from steadyrl.engine.precision import FORMATS, quantise_activations, quantised_weights
from steadyrl.engine.sampling import sample
from steadyrl.engine.wave import Wave
from steadyrl.model.attention import use_own_attention
from steadyrl.model.decoding import reserved_cache
from steadyrl.options.bounds import AtOnce
from steadyrl.routing import is_moe, record
from steadyrl.types import Completion, Sampling


class LocalEngine(BaseEngine):
    """An inference engine around a copy of a transformers model. See `engine.base.Engine`.

    Args:
        model: the trained model; its architecture and weights are copied.
        end_tokens: ids that end a response.
        precision: `fp8`: weights and activations of linears and experts are rounded to e4m3, as FP8 engines do.
            Coarser, for studies: `fp8_e5m2` rounds activations to e5m2; `int4` and `fp4` (MXFP4) round weights to four
            bits.
        kv_precision: `fp8`: keys and values are rounded to e4m3 when they enter the cache.
        max_sequences: Most sequences decoded side by side.

    Raises:
        UserError: an FP8 cache was asked for, and the model has layers that are not full attention.
        EngineError: decoding this model gives other log-probabilities or experts than its forward, or fails.
    """

    kind: ClassVar[str] = "local"

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        end_tokens: set[int],
        precision: Literal["native", "fp8", "fp8_e5m2", "int4", "fp4"] = "native",
        kv_precision: Literal["native", "fp8"] = "native",
        max_sequences: AtOnce = 256,
    ):
        super().__init__(model)
        self._model = copy.deepcopy(model).eval().requires_grad_(False)
        self._ends = torch.tensor(sorted(end_tokens), dtype=torch.long, device=model.device)
        self._fp8_cache = kv_precision == "fp8"
        if self._fp8_cache:
            reserved_cache(self._model, length=0, fp8=True)  # a model that it is not for is refused now
        self._max_sequences = max_sequences
        self._numbers: dict[int, Float[Tensor, "n steps"]] = {}
        form, self._rounded = None if precision == "native" else FORMATS[precision], {}
        if form is not None:
            dims = quantised_weights(self._model)
            self._rounded = {name: partial(form.weights, dim=dim) for name, dim in dims.items()}
        weights, activations = ("native", "native") if form is None else form.says
        self._facts = {
            "engine": "local",
            "version": f"transformers {transformers.__version__}",
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "weights": weights,
            "activations": activations,
            "kv_cache": "fp8 (e4m3), emulated" if self._fp8_cache else "native",
            "logprobs": "of the distribution that was sampled from",
        }
        if is_moe(self._model) and self._model._can_set_experts_implementation():
            self._model.set_experts_implementation("grouped_mm")
        use_own_attention(self._model)
        check_decoding(self._model, self._decode_unrounded)
        if form is not None:
            quantise_activations(self._model, form.activations)
        self.update_weights(model.named_parameters(), version=0)

    def close(self) -> None:
        """Do nothing: its memory goes with the object, and it has no process."""

    def sleep(self) -> None:
        """Do nothing but check that no request waits: between two calls of `collect` it holds its weights alone."""
        self._require_idle("let the engine sleep")

    def wake(self) -> None:
        """Do nothing, see `sleep`."""

    def collect(self) -> Iterator[Answer]:
        """Answer the requests that wait, in waves of similar ones: the shortest prompts first."""
        try:
            while self._waiting:
                yield from self._answers(self._wave())
        finally:
            self._waiting.clear()
            self._numbers.clear()

    def _add(self, requests: Sequence[Request]) -> None:
        """Draw the random numbers of each request: a row of a table that its seed alone decides.

        The table has a row for every place up to the largest: torch draws one row after the other, so a row does not
        depend on how many there are.
        """
        for kind in {_kind(request) for request in requests}:
            alike = [request for request in requests if _kind(request) == kind]
            seed, responses, sampling = kind
            table = torch.rand(
                max(request.place for request in alike) + 1,
                responses,
                sampling.max_new_tokens,
                generator=torch.Generator().manual_seed(seed),
            )
            self._numbers.update({request.place: table[request.place] for request in alike})

    @torch.no_grad()
    def _take_over(self, tensors: Iterator[tuple[str, Tensor]]) -> None:
        """Copy the trainer's weights, rounding those that this precision rounds."""
        held = dict(self._model.named_parameters())
        for name, tensor in tensors:
            held[name].copy_(self._rounded[name](tensor) if name in self._rounded else tensor)

    def _wave(self) -> list[Request]:
        """Which requests are decoded next, side by side: of one kind, so that they take the same number of steps."""
        by_length = sorted(self._waiting.values(), key=lambda request: len(request.token_ids))
        alike = [request for request in by_length if _kind(request) == _kind(by_length[0])]
        return alike[: max(1, self._max_sequences // alike[0].responses)]

    def _answers(self, wave: Sequence[Request]) -> Iterator[Answer]:
        """Decode a wave; more responses to one prompt than fit side by side take several turns."""
        completions: list[list[Completion]] = [[] for _ in wave]
        prompts = [request.token_ids for request in wave]
        numbers = torch.stack([self._numbers[request.place] for request in wave])
        for some in numbers.split(self._max_sequences, dim=1):
            found = self._decode(prompts, some, wave[0].sampling, self._ends, fp8_cache=self._fp8_cache)
            for group, more in zip(completions, found, strict=True):
                group.extend(more)
        for request, group in zip(wave, completions, strict=True):
            del self._waiting[request.place], self._numbers[request.place]
            yield Answer(place=request.place, completions=tuple(group))

    def _decode_unrounded(
        self, prompts: Sequence[Sequence[int]], uniforms: Tensor, sampling: Sampling, ends: set[int]
    ) -> list[list[Completion]]:
        """What `check_decoding` decodes with: the same steps without rounding in the cache."""
        return self._decode(prompts, uniforms, sampling, self._ends.new_tensor(sorted(ends)), fp8_cache=False)

    def _decode(
        self,
        prompts: Sequence[Sequence[int]],
        uniforms: Float[Tensor, "prompts n steps"],
        sampling: Sampling,
        ends: Int[Tensor, "ends"],
        *,
        fp8_cache: bool,
    ) -> list[list[Completion]]:
        """One wave: prefill the prompts, share each among its n responses, then a token at a time."""
        n, steps = uniforms.shape[1:]
        with torch.inference_mode(), record(self._model) as recorder:
            batch = Wave(self._model, prompts, n, steps, recorder if is_moe(self._model) else None, fp8_cache)
            numbers = uniforms.flatten(0, 1).to(self._model.device)
            logits = batch.prefill()
            for t in range(steps):
                ids, logprobs = sample(logits, numbers[batch.rows, t], sampling)
                batch.keep(t, ids, logprobs, ended=torch.isin(ids, ends))
                if t + 1 == steps or not batch.anyone_alive(t):
                    break
                logits = batch.step(t)
        return batch.completions(self._version)


def _kind(request: Request) -> tuple[int, int, Sampling]:
    """What requests have in common that are decoded side by side."""
    return request.seed, request.responses, request.sampling
