"""Sequences that the embedded engine decodes side by side."""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from steadyrl.model.attention import attends_by_block
from steadyrl.model.decoding import ReservedLayer, cache_argument, reserved_cache
from steadyrl.model.loading import decoder_of, head_of
from steadyrl.routing import Recorder
from steadyrl.types import Completion, Routes

COMPACT_BELOW = 0.8
"""Ended sequences are dropped from the batch, a copy of the cache, once fewer than this share are alive."""
LOOK_EVERY = 8
"""On a GPU, which the host has to wait for, the engine looks this often, in tokens, who is alive."""


class Wave:
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
