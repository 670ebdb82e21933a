"""Sequences into packed micro-batches.

A prompt is computed once for all the responses to it in a micro-batch: with G responses, a share of up to (G−1)/G of
the prompt tokens is never computed. No other position is padding either; only attention, which needs whole sequences,
is given blocks of them, sorted so that the members of a block are of nearly equal length.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from steadyrl.errors import UserError
from steadyrl.types import MicroBatch, Response, Routes, TokenBatch

MAX_PADDING = 0.03
"""Largest share of padding among the cells of a block."""
MAX_PADDING_ALONE = 0.10
"""The same where a block is a micro-batch by itself, and a narrow one costs a forward of its own."""


class _Fed(NamedTuple):
    """A sequence as it is fed: all its tokens but the last."""

    ids: tuple[int, ...]
    """Prompt and response."""
    prompt: int
    """Tokens of the prompt."""
    routes: Routes | None = None
    """Experts of the fed positions."""

    def __len__(self) -> int:
        return len(self.ids) - 1

    def start(self) -> tuple[tuple[int, ...], bytes]:
        """What two sequences must have in common to share a prompt: its tokens, and the experts chosen for them."""
        chosen = b"" if self.routes is None else self.routes[: self.prompt].numpy().tobytes()
        return self.ids[: self.prompt], chosen


def pack_responses(
    responses: Sequence[Response], *, micro_tokens: int, one_block: bool, device: torch.device
) -> list[MicroBatch]:
    """Micro-batches of at most `micro_tokens` cells, padding included.

    Responses whose advantage is zero move nothing: they are packed apart from the others, so that an update can skip
    their micro-batches and keep its gradient.

    Args:
        responses: responses with their advantages, those to one prompt side by side.
        micro_tokens: most cells in one micro-batch.
        one_block: for models that take one block at a time (`model.attention`), with a row for each sequence.
        device: where the tensors go.

    Raises:
        UserError: a sequence is longer than `micro_tokens`, or a response's log-probs or routes do not fit its tokens.
    """
    for response in responses:
        _check(response)
    moving = [r for r in responses if r.advantage != 0.0]
    resting = [r for r in responses if r.advantage == 0.0]
    micros = []
    for part in (moving, resting):
        fed = [_Fed((*r.prompt_ids, *r.completion.token_ids), len(r.prompt_ids), r.completion.routes) for r in part]
        for blocks in layout([len(f) for f in fed], micro_tokens=micro_tokens, one_block=one_block):
            batch = _to(_fill(blocks, fed, one_block=one_block), device)
            micros.append(_facts(batch, [part[i] for block in blocks for i in block], device))
    return micros


def _check(response: Response) -> None:
    """An engine whose rows do not fit its tokens would train the wrong positions; nothing may be laid out shifted."""
    completion = response.completion
    sampled, fed = len(completion.token_ids), len(response.prompt_ids) + len(completion.token_ids) - 1
    if len(completion.logprobs) != sampled:
        raise UserError(f"the engine returned {len(completion.logprobs)} log-probs for {sampled} sampled tokens")
    if completion.routes is not None and len(completion.routes) != fed:
        raise UserError(f"the engine returned {len(completion.routes)} rows of routes for {fed} fed positions")


def pack_sequences(
    sequences: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    *,
    micro_tokens: int,
    one_block: bool,
    device: torch.device,
) -> list[TokenBatch]:
    """Micro-batches of plain sequences, whose tokens after the prompt are predicted; for supervised training."""
    fed = [_Fed(tuple(ids), prompt) for ids, prompt in zip(sequences, prompt_lengths, strict=True)]
    micros = layout([len(f) for f in fed], micro_tokens=micro_tokens, one_block=one_block)
    return [_to(_fill(blocks, fed, one_block=one_block), device) for blocks in micros]


def layout(lengths: Sequence[int], *, micro_tokens: int, one_block: bool) -> list[list[list[int]]]:
    """Micro-batches, each a list of blocks, each a list of indices into `lengths`, the longest first.

    The order is kept from one micro-batch to the next, so that responses to one prompt stay together, except where
    every block is a micro-batch of its own.

    Raises:
        UserError: a sequence is longer than `micro_tokens`.
    """
    for length in lengths:
        if length > micro_tokens:
            raise UserError(
                f"a prompt and its response feed {length} tokens, more than update.micro_tokens = {micro_tokens}; "
                "raise it"
            )
    if one_block:
        everything = range(len(lengths))
        return [[b] for b in _blocks(everything, lengths, padding=MAX_PADDING_ALONE, most=micro_tokens)]
    portions = _portions(lengths, most=(1.0 - MAX_PADDING) * micro_tokens)
    return [_blocks(portion, lengths, padding=MAX_PADDING, most=micro_tokens) for portion in portions]


def _portions(lengths: Sequence[int], *, most: float) -> list[list[int]]:
    """Neighbours, as many together as feed at most `most` tokens."""
    portions: list[list[int]] = []
    total = most
    for i, length in enumerate(lengths):
        if total + length > most:
            portions.append([])
            total = 0
        portions[-1].append(i)
        total += length
    return portions


def _blocks(indices: Sequence[int], lengths: Sequence[int], *, padding: float, most: int) -> list[list[int]]:
    """By falling length, a new block wherever the last one would exceed its share of padding, or `most` cells."""
    blocks: list[list[int]] = []
    tokens = 0  # in the last block
    for i in sorted(indices, key=lambda i: -lengths[i]):
        cells = lengths[blocks[-1][0]] * (len(blocks[-1]) + 1) if blocks else most + 1
        tokens += lengths[i]
        if cells > most or tokens < (1.0 - padding) * cells:
            blocks.append([])
            tokens = lengths[i]
        blocks[-1].append(i)
    return blocks


def _fill(blocks: Sequence[Sequence[int]], fed: Sequence[_Fed], *, one_block: bool) -> TokenBatch:
    """Lay the positions end to end and the cells over them; in a lone block, padding too is computed."""
    ids, positions, cells, home, predicting, targets = ([] for _ in range(6))
    routes: list[Tensor | None] = []
    prompts: dict[object, int] = {}  # where each begins
    for width, i in ((len(fed[block[0]]), i) for block in blocks for i in block):
        own, prompt = fed[i], fed[i].prompt
        padding = width - len(own)
        start = i if one_block else own.start()
        if start not in prompts:
            prompts[start] = len(ids)
            home += range(len(cells), len(cells) + prompt)
            ids += own.ids[:prompt]
            positions += range(prompt)
            routes.append(None if own.routes is None else own.routes[:prompt])
        rest = (*own.ids[prompt:-1], *(0,) * (padding if one_block else 0))
        here = [*range(prompts[start], prompts[start] + prompt), *range(len(ids), len(ids) + len(rest))]
        home += range(len(cells) + prompt, len(cells) + len(here))
        ids += rest
        positions += range(prompt, len(here))
        cells += [*here, *here[-1:] * (width - len(here))]
        predicting += here[prompt - 1 : len(own)]
        targets += own.ids[prompt:]
        routes.append(None if own.routes is None else _sentinels_after(own.routes[prompt:], len(rest)))
    return TokenBatch(
        input_ids=torch.tensor(ids),
        position_ids=torch.tensor(positions),
        blocks=tuple((len(block), len(fed[block[0]])) for block in blocks),
        cells=torch.tensor(cells),
        home=torch.tensor(home),
        predicting=torch.tensor(predicting),
        targets=torch.tensor(targets),
        fed_tokens=sum(len(fed[i]) for block in blocks for i in block),
        routes=_joined(routes),
    )


def _sentinels_after(routes: Tensor, rows: int) -> Tensor:
    """Routes of `rows` positions, of which those that are padding have none."""
    sentinel = torch.iinfo(routes.dtype).max
    return torch.cat([routes, routes.new_full((rows - len(routes), *routes.shape[1:]), sentinel)])


def _joined(routes: Sequence[Tensor | None]) -> Tensor | None:
    known = [r for r in routes if r is not None]
    if not known:
        return None
    if len(known) != len(routes):
        raise ValueError("some responses came with routes and some without")
    return torch.cat(known)


def _facts(batch: TokenBatch, responses: Sequence[Response], device: torch.device) -> MicroBatch:
    """The facts about each response token, in the order of `batch.targets`."""
    counts = torch.tensor([len(r.completion.token_ids) for r in responses], device=device)

    def per_token(values: Sequence[float], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=device).repeat_interleave(counts)

    return MicroBatch(
        batch=batch,
        moves=any(r.advantage != 0.0 for r in responses),
        rollout_logprobs=torch.cat([r.completion.logprobs for r in responses]).to(device),
        advantages=per_token([r.advantage for r in responses]),
        response_tokens=per_token([len(r.completion.token_ids) for r in responses]),
        group_tokens=per_token([r.group_tokens for r in responses]),
        excess=per_token([r.advantage if r.excess is None else r.excess for r in responses]),
        response=per_token(range(len(responses)), torch.int64),
        policy_version=per_token([r.completion.policy_version for r in responses], torch.int64),
    )


def _to(batch: TokenBatch, device: torch.device) -> TokenBatch:
    tensors = {f.name: value.to(device) for f in fields(batch) if isinstance(value := getattr(batch, f.name), Tensor)}
    return replace(batch, **tensors)
