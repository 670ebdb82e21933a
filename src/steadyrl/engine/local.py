"""The embedded engine: batched decoding in this process, for models and machines of modest size.

Each prompt is computed once, however many responses it gets. Sequences that have ended leave the batch. Randomness
belongs to the sequence (one uniform number for each of its tokens), so it does not depend on who else is decoded.
"""

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from typing import ClassVar, Literal, cast

import torch
import transformers
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from steadyrl.engine.base import Answer, Request
from steadyrl.engine.common import BaseEngine
from steadyrl.engine.decoding_check import check_decoding
from steadyrl.engine.precision import FORMATS, quantise_activations, quantised_weights
from steadyrl.model.attention import attends_by_block, use_own_attention
from steadyrl.model.decoding import ReservedLayer, cache_argument, reserved_cache
from steadyrl.model.loading import decoder_of, head_of
from steadyrl.options.bounds import AtOnce
from steadyrl.routing import Recorder, is_moe, record
from steadyrl.types import Completion, Routes, Sampling

COMPACT_BELOW = 0.8
"""Ended sequences are dropped from the batch, a copy of the cache, once fewer than this share are alive."""
LOOK_EVERY = 8
"""On a GPU, which the host has to wait for, the engine looks this often, in tokens, who is alive."""


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
            batch = _Wave(self._model, prompts, n, steps, recorder if is_moe(self._model) else None, fp8_cache)
            numbers = uniforms.flatten(0, 1).to(self._model.device)
            logits = batch.prefill()
            for t in range(steps):
                ids, logprobs = sample(logits, numbers[batch.rows, t], sampling)
                batch.keep(t, ids, logprobs, ended=torch.isin(ids, ends))
                if t + 1 == steps or not batch.anyone_alive(t):
                    break
                logits = batch.step(t)
        return batch.completions(self._version)


class _Wave:
    """Sequences decoded side by side: the cache, who is still alive, and what they have said so far."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        n: int,
        steps: int,
        recorder: Recorder | None,
        fp8_cache: bool,
    ):
        self._model, self._recorder, self._n = model, recorder, n
        self._prompt_lengths = [len(p) for p in prompts]
        self._longest = max(self._prompt_lengths)
        device, total = model.device, len(prompts) * n
        self._prompts, self._mask = _pad_left(prompts, self._longest + steps, device)
        self._cache = reserved_cache(model, length=self._longest + steps, fp8=fp8_cache)
        self._cache_argument = cache_argument(model)
        self._padded = len(set(self._prompt_lengths)) > 1
        full = all(isinstance(layer, ReservedLayer) for layer in self._cache.layers)
        self._takes_ready_masks = full and attends_by_block(model)
        self.rows = torch.arange(total, device=device)
        """Which sequence each row of the running batch is."""
        self._alive = torch.ones(total, dtype=torch.bool, device=device)
        self._ids = torch.zeros(total, steps, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(total, steps, device=device)
        self._lengths = torch.zeros(total, dtype=torch.long, device=device)
        self._stopped = torch.zeros(total, dtype=torch.bool, device=device)
        self._prompt_routes: Tensor | None = None
        self._step_routes: Tensor | None = None

    def prefill(self) -> Float[Tensor, "rows vocabulary"]:
        """Compute each prompt once; the logits of its next token, repeated for its n responses."""
        positions = (self._mask[:, : self._longest].cumsum(dim=1) - 1).clamp(min=0)
        logits = self._forward(self._prompts, positions, self._longest)
        if self._recorder is not None:
            routes = _writable(self._recorder.routes())
            self._prompt_routes = routes.view(len(self._prompts), self._longest, *routes.shape[1:])
            shape = (len(self.rows), self._ids.shape[1] - 1, *routes.shape[1:])
            self._step_routes = routes.new_zeros(shape)
        self._take(torch.arange(len(self._prompts), device=self.rows.device).repeat_interleave(self._n))
        self._mask = self._mask.repeat_interleave(self._n, dim=0)
        self._next = positions[:, -1].repeat_interleave(self._n) + 1
        return logits.repeat_interleave(self._n, dim=0)

    def keep(self, t: int, ids: Tensor, logprobs: Tensor, *, ended: Tensor) -> None:
        """Write down the tokens sampled at step t, and who has ended with them."""
        self._ids[self.rows, t] = ids
        self._logprobs[self.rows, t] = logprobs
        self._lengths[self.rows] += self._alive  # numbers and no places: the host need not know how many there are
        self._stopped[self.rows] |= ended & self._alive
        self._alive = self._alive & ~ended

    def anyone_alive(self, t: int) -> bool:
        """Whether anything is left to decode after step t; drops the ended once they are many."""
        if self.rows.device.type != "cpu" and (t + 1) % LOOK_EVERY:
            return True
        alive = int(self._alive.sum())
        if 0 < alive < COMPACT_BELOW * len(self.rows):
            chosen = self._alive.nonzero().squeeze(1)
            self._take(chosen)
            self.rows, self._mask, self._next = self.rows[chosen], self._mask[chosen], self._next[chosen]
            self._alive = self._alive[chosen]
        return alive > 0

    def _take(self, rows: Tensor) -> None:
        """Keep these rows of the cache, in this order, some perhaps several times."""
        self._cache.reorder_cache(cast(torch.LongTensor, rows))

    def step(self, t: int) -> Float[Tensor, "rows vocabulary"]:
        """Feed the tokens sampled at step t; the logits of the next ones."""
        logits = self._forward(self._ids[self.rows, t, None], self._next[:, None], self._longest + t + 1)
        self._next = self._next + 1
        if self._recorder is not None and self._step_routes is not None:
            self._step_routes[self.rows, t] = _writable(self._recorder.routes())
        return logits

    def _forward(self, ids: Int[Tensor, "rows fed"], positions: Tensor, seen: int) -> Tensor:
        hidden = decoder_of(self._model)(
            input_ids=ids,
            attention_mask=self._seen(seen, fed=ids.shape[1]),
            position_ids=positions,
            use_cache=True,
            **{self._cache_argument: self._cache},
        ).last_hidden_state
        return head_of(self._model).logits(hidden[:, -1])

    def _seen(self, length: int, *, fed: int) -> Tensor | None:
        """Which tokens are real; for a single query as attention takes it, else transformers asks the device for it."""
        if not self._padded:
            return None
        mask = self._mask[:, :length]
        return mask.bool()[:, None, None] if fed == 1 and self._takes_ready_masks else mask

    def completions(self, version: int) -> list[list[Completion]]:
        """What each prompt's responses said."""
        lengths, stopped = self._lengths.tolist(), self._stopped.tolist()
        ids, logprobs = self._ids.cpu(), self._logprobs.cpu()
        if self._prompt_routes is not None and self._step_routes is not None:  # one copy for the whole wave
            self._prompt_routes, self._step_routes = self._prompt_routes.cpu(), self._step_routes.cpu()
        found = [
            Completion(
                token_ids=tuple(ids[row, :length].tolist()),
                logprobs=logprobs[row, :length].clone(),  # out of inference mode
                routes=self._routes_of(row, length),
                finish_reason="stop" if stopped[row] else "length",
                policy_version=version,
            )
            for row, length in enumerate(lengths)
        ]
        return [found[first : first + self._n] for first in range(0, len(found), self._n)]

    def _routes_of(self, row: int, length: int) -> Routes | None:
        """Routes of the fed positions: the whole prompt, and every response token but the last."""
        if self._prompt_routes is None or self._step_routes is None:
            return None
        prompt = row // self._n
        own = self._prompt_routes[prompt, self._longest - self._prompt_lengths[prompt] :]
        routes = torch.cat([own, self._step_routes[row, : length - 1]])
        return routes.view(torch.uint8 if routes.dtype == torch.int8 else torch.uint16)


def _kind(request: Request) -> tuple[int, int, Sampling]:
    """What requests have in common that are decoded side by side."""
    return request.seed, request.responses, request.sampling


def sample(
    logits: Float[Tensor, "rows vocabulary"], uniform: Float[Tensor, "rows"], sampling: Sampling
) -> tuple[Int[Tensor, "rows"], Float[Tensor, "rows"]]:
    """A token for each row, and its log-probability under the distribution that it was drawn from.

    Drawn by inverting the cumulative distribution at `uniform`; greedy, a certainty, has log-probability 0.
    """
    if sampling.temperature == 0.0:
        return logits.argmax(dim=-1), torch.zeros_like(uniform)
    logprobs = torch.log_softmax(logits / sampling.temperature, dim=-1)
    if sampling.top_k or sampling.top_p < 1.0:
        logprobs = _truncate(logprobs, top_k=sampling.top_k, top_p=sampling.top_p)
    cumulative = logprobs.exp().cumsum(dim=-1, dtype=torch.float64)
    threshold = uniform.double()[:, None] * cumulative[:, -1:]
    ids = torch.searchsorted(cumulative, threshold, right=True).clamp_(max=logits.shape[-1] - 1)
    return ids.squeeze(1), logprobs.gather(1, ids).squeeze(1)


def _truncate(logprobs: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """Keep the top_k likeliest tokens, then of those the fewest that reach top_p of the mass; renormalise."""
    ordered, order = logprobs.sort(dim=-1, descending=True)
    rank = torch.arange(ordered.shape[-1], device=ordered.device)
    if top_k:
        ordered = torch.log_softmax(ordered.masked_fill(rank >= top_k, -torch.inf), dim=-1)
    before = ordered.exp().cumsum(dim=-1) - ordered.exp()
    ordered = torch.log_softmax(ordered.masked_fill((before >= top_p) & (rank > 0), -torch.inf), dim=-1)
    return torch.empty_like(logprobs).scatter_(1, order, ordered)


def _writable(routes: Routes) -> Tensor:
    """The same bytes as signed integers, which torch can index into; it cannot with 16 unsigned bits."""
    return routes.view(torch.int8 if routes.dtype == torch.uint8 else torch.int16)


def _pad_left(
    prompts: Sequence[Sequence[int]], width: int, device: torch.device
) -> tuple[Int[Tensor, "prompts longest"], Int[Tensor, "prompts width"]]:
    """Prompts that end in the same column, and a mask of the real tokens, as wide as prompt and response together."""
    longest = max(len(p) for p in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.ones(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, : longest - len(prompt)] = 0
    return ids.to(device), mask.to(device)
