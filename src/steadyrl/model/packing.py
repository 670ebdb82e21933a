"""Sequences into packed micro-batches.

Each row of a micro-batch holds several sequences, and transformers keeps them apart because their positions start at
0 again. Rows are made as even as possible, and there are as many of them (so each is as short, and its attention as
cheap) as the limit on padding allows.
"""

import heapq
from collections.abc import Sequence
from dataclasses import replace

import torch

from steadyrl.errors import UserError
from steadyrl.types import MicroBatch, Response, Routes, TokenBatch

MAX_PADDING = 0.05
"""Largest share of padding for which shorter rows are preferred to fewer."""


def pack_responses(
    responses: Sequence[Response], *, micro_tokens: int, one_per_row: bool, device: torch.device
) -> list[MicroBatch]:
    """Micro-batches of at most `micro_tokens` positions, padding included.

    Responses whose advantage is zero move nothing: they are packed apart from the others, so that an update can skip
    their micro-batches and keep its gradient.

    Args:
        responses: scored responses.
        micro_tokens: most positions in one micro-batch.
        one_per_row: never two sequences in a row, for models with a recurrent state that would leak across.
        device: where the tensors go.

    Raises:
        UserError: a sequence is longer than `micro_tokens`, or a response's log-probs or routes do not fit its tokens.
    """
    moving = [r for r in responses if r.advantage != 0.0]
    resting = [r for r in responses if r.advantage == 0.0]
    for response in responses:
        _check(response)
    micros = []
    for part in (moving, resting):
        sequences = [(*r.prompt_ids, *r.completion.token_ids) for r in part]
        for rows in layout([len(s) - 1 for s in sequences], micro_tokens=micro_tokens, one_per_row=one_per_row):
            batch = _fill(rows, sequences, [len(r.prompt_ids) for r in part])
            routes = _place([r.completion.routes for r in part], rows, batch.input_ids.shape)
            ordered = [part[i] for row in rows for i in row]
            micros.append(_facts(_to(replace(batch, routes=routes), device), ordered, device))
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
    one_per_row: bool,
    device: torch.device,
) -> list[TokenBatch]:
    """Micro-batches of plain sequences, whose tokens after the prompt are predicted; for supervised training."""
    lengths = [len(s) - 1 for s in sequences]
    rows = layout(lengths, micro_tokens=micro_tokens, one_per_row=one_per_row)
    return [_to(_fill(part, sequences, prompt_lengths), device) for part in rows]


def layout(lengths: Sequence[int], *, micro_tokens: int, one_per_row: bool) -> list[list[list[int]]]:
    """Micro-batches, each a list of rows, each a list of indices into `lengths`.

    Raises:
        UserError: a sequence is longer than `micro_tokens`.
    """
    if not lengths:
        return []
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    if lengths[longest] > micro_tokens:
        raise UserError(
            f"sequence {longest} feeds {lengths[longest]} tokens, more than update.micro_tokens = {micro_tokens}"
        )
    rows = _single_rows(lengths) if one_per_row else _even_rows(lengths, widest=micro_tokens)
    micros: list[list[list[int]]] = []
    for row in rows:  # widest first, so a micro-batch is as wide as its first row
        if micros and _width(micros[-1][0], lengths) * (len(micros[-1]) + 1) <= micro_tokens:
            micros[-1].append(row)
        else:
            micros.append([row])
    return micros


def _width(row: Sequence[int], lengths: Sequence[int]) -> int:
    return sum(lengths[i] for i in row)


def _single_rows(lengths: Sequence[int]) -> list[list[int]]:
    return [[i] for i in sorted(range(len(lengths)), key=lambda i: -lengths[i])]


def _even_rows(lengths: Sequence[int], *, widest: int) -> list[list[int]]:
    """The most rows whose padding is at most MAX_PADDING; else the rows with the least. Widest row first."""
    total, count = sum(lengths), min(len(lengths), -(-sum(lengths) // max(lengths)))
    best: list[list[int]] = _single_rows(lengths)
    best_cells = len(best) * max(lengths)
    while count >= 1:
        rows = _balance(lengths, count)
        columns = _width(rows[0], lengths)
        if columns > widest:
            break
        if count * columns < best_cells:
            best, best_cells = rows, count * columns
        if total >= (1.0 - MAX_PADDING) * count * columns:
            break
        count = min(count - 1, int(0.9 * count))
    return best


def _balance(lengths: Sequence[int], count: int) -> list[list[int]]:
    """`count` rows of nearly equal width: the longest sequence left goes to the narrowest row. Widest row first."""
    heap = [(0, row) for row in range(count)]
    rows: list[list[int]] = [[] for _ in range(count)]
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        width, row = heapq.heappop(heap)
        rows[row].append(index)
        heapq.heappush(heap, (width + lengths[index], row))
    return sorted((row for row in rows if row), key=lambda row: -_width(row, lengths))


def _fill(
    rows: Sequence[Sequence[int]], sequences: Sequence[Sequence[int]], prompt_lengths: Sequence[int]
) -> TokenBatch:
    """Lay the fed tokens, their positions and the targets out on a grid."""
    lengths = [len(s) - 1 for s in sequences]
    columns = max(_width(row, lengths) for row in rows)
    input_ids = torch.zeros(len(rows), columns, dtype=torch.long)
    position_ids = torch.arange(columns).repeat(len(rows), 1)
    predicting, targets = [], []
    for r, row in enumerate(rows):
        start = 0
        for i in row:
            end = start + lengths[i]
            input_ids[r, start:end] = torch.tensor(sequences[i][:-1])
            position_ids[r, start:] -= int(position_ids[r, start])
            first = prompt_lengths[i] - 1
            predicting.append(torch.arange(start + first, end) + r * columns)
            targets.append(torch.tensor(sequences[i][prompt_lengths[i] :]))
            start = end
        if len(row) > 1 and start < columns:  # a lone sequence lets the padding continue it: causal, never read
            position_ids[r, start:] -= int(position_ids[r, start])
    return TokenBatch(
        input_ids=input_ids,
        position_ids=position_ids,
        predicting=torch.cat(predicting),
        targets=torch.cat(targets),
        fed_tokens=sum(_width(row, lengths) for row in rows),
    )


def _place(
    routes: Sequence[torch.Tensor | None], rows: Sequence[Sequence[int]], shape: tuple[int, ...]
) -> Routes | None:
    """Lay routes out on the grid of `_fill`; the sentinel where no token is fed."""
    known = [r for r in routes if r is not None]
    if not known:
        return None
    if len(known) != len(routes):
        raise ValueError(f"{len(routes) - len(known)} of {len(routes)} responses came without routes")
    grid = torch.full((*shape, *known[0].shape[1:]), torch.iinfo(known[0].dtype).max, dtype=known[0].dtype)
    for r, row in enumerate(rows):
        start = 0
        for i in row:
            grid[r, start : start + len(known[i])] = known[i]
            start += len(known[i])
    return grid


def _facts(batch: TokenBatch, responses: Sequence[Response], device: torch.device) -> MicroBatch:
    """The facts about each response token, in the order of `batch.targets`."""
    counts = torch.tensor([len(r.completion.token_ids) for r in responses], device=device)

    def per_token(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device).repeat_interleave(counts)

    return MicroBatch(
        batch=batch,
        moves=any(r.advantage != 0.0 for r in responses),
        rollout_logprobs=torch.cat([r.completion.logprobs for r in responses]).to(device),
        advantages=per_token([r.advantage for r in responses]),
        response_tokens=per_token([len(r.completion.token_ids) for r in responses]),
        group_tokens=per_token([r.group_tokens for r in responses]),
        response=torch.arange(len(responses), device=device).repeat_interleave(counts),
    )


def _to(batch: TokenBatch, device: torch.device) -> TokenBatch:
    return replace(
        batch,
        input_ids=batch.input_ids.to(device),
        position_ids=batch.position_ids.to(device),
        predicting=batch.predicting.to(device),
        targets=batch.targets.to(device),
        routes=None if batch.routes is None else batch.routes.to(device),
    )
