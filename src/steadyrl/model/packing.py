"""Sequences into packed micro-batches.

A prompt is computed once for all the trajectories of a micro-batch that begin with it. With G such trajectories, up to
(G−1)/G of the prompt tokens are not computed. There is no padding outside attention. Attention needs whole sequences:
it gets blocks of sequences, sorted so that those of a block have nearly equal lengths.

All of this happens on the host, with a fixed number of tensor operations for each micro-batch.
"""

from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from steadyrl.errors import UserError
from steadyrl.types import MicroBatch, Routes, Sampled, TokenBatch, Trajectory

MAX_PADDING = 0.03
"""Largest share of padding among the cells of a block."""
MAX_PADDING_ALONE = 0.10
"""The same if each block is a micro-batch, where a narrow block costs another forward."""


class _Fed(NamedTuple):
    """A sequence as it is fed: all its tokens but the last."""

    parts: Sequence[Sequence[int]]
    """All its tokens; the first part is the prompt, which it may share."""
    predicted: Sequence[tuple[int, int]]
    """Which of them are predicted: (index of the first, number) of each span."""
    routes: Routes | None = None
    """Experts of the fed positions."""

    @property
    def prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.parts[0])

    def __len__(self) -> int:
        return sum(map(len, self.parts)) - 1

    def begins_as(self, other: "_Fed") -> bool:
        """Whether the same experts were chosen for an equal prompt."""
        if self.routes is None or other.routes is None:
            return self.routes is other.routes
        return torch.equal(self.routes[: self.prompt], other.routes[: self.prompt])


def pack(trajectories: Sequence[Trajectory], *, micro_tokens: int, one_block: bool) -> list[MicroBatch]:
    """Micro-batches of at most `micro_tokens` cells, padding included, on the host.

    Trajectories with an advantage of zero have no gradient. They are packed apart from the others, so an update can
    skip their micro-batches.

    Args:
        trajectories: with their advantages; those that share a prompt side by side.
        micro_tokens: most cells in one micro-batch.
        one_block: for models that take one block at a time (`model.attention`), with a row for each sequence.

    Raises:
        UserError: a sequence is longer than `micro_tokens`.
        ValueError: some trajectories have routes and some have none.
    """
    moving = [t for t in trajectories if t.advantage != 0.0]
    resting = [t for t in trajectories if t.advantage == 0.0]
    micros = []
    for part in (moving, resting):
        fed = [_fed(trajectory) for trajectory in part]
        for blocks in layout([len(f) for f in fed], micro_tokens=micro_tokens, one_block=one_block):
            micros.append(_facts(_fill(blocks, fed, one_block=one_block), [part[i] for block in blocks for i in block]))
    return micros


def _fed(trajectory: Trajectory) -> _Fed:
    starts = accumulate((len(span.token_ids) for span in trajectory.spans), initial=0)
    predicted = [
        (start, len(span.token_ids))
        for start, span in zip(starts, trajectory.spans, strict=False)
        if isinstance(span, Sampled)
    ]
    return _Fed([span.token_ids for span in trajectory.spans], predicted, trajectory.routes)


def pack_sequences(
    sequences: Sequence[Sequence[int]], prompt_lengths: Sequence[int], *, micro_tokens: int, one_block: bool
) -> list[TokenBatch]:
    """Micro-batches of plain sequences, whose tokens after the prompt are predicted; for supervised training."""
    fed = [
        _Fed((tuple(ids[:prompt]), ids[prompt:]), [(prompt, len(ids) - prompt)])
        for ids, prompt in zip(sequences, prompt_lengths, strict=True)
    ]
    micros = layout([len(f) for f in fed], micro_tokens=micro_tokens, one_block=one_block)
    return [_fill(blocks, fed, one_block=one_block) for blocks in micros]


def layout(lengths: Sequence[int], *, micro_tokens: int, one_block: bool) -> list[list[list[int]]]:
    """Micro-batches, each a list of blocks, each a list of indices into `lengths`, the longest first.

    The order is kept from one micro-batch to the next, so trajectories with the same prompt stay together. It is not
    kept if every block is a micro-batch.

    Raises:
        UserError: a sequence is longer than `micro_tokens`.
    """
    for length in lengths:
        if length > micro_tokens:
            raise UserError(
                f"a sequence feeds {length} tokens, more than update.micro_tokens = {micro_tokens}; raise it"
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


class _Places(NamedTuple):
    """Where the sequences of a micro-batch are, one number for each."""

    prompt: Int[Tensor, "sequences"]
    """Tokens of its prompt."""
    skipped: Int[Tensor, "sequences"]
    """As many where another sequence computes the prompt, else 0."""
    fed: Int[Tensor, "sequences"]
    """Fed tokens."""
    length: Int[Tensor, "sequences"]
    """The same with the padding that is computed, as in a lone block."""
    width: Int[Tensor, "sequences"]
    """Cells, padding included."""
    own: Int[Tensor, "sequences"]
    """The position of its token j behind the prompt, less j."""
    shared: Int[Tensor, "sequences"]
    """The same for a token of the prompt."""

    def position(self, which: Int[Tensor, "n"] | slice, index: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
        """The position of token `index` of sequence `which`, both counted from 0."""
        return self.own[which].where(index >= self.prompt[which], self.shared[which]) + index


def _places(sequences: Sequence[_Fed], widths: Sequence[int], *, one_block: bool) -> _Places:
    """Lay the positions of sequences end to end; in a lone block nothing is shared."""
    everyone = list(range(len(sequences)))
    owners = everyone if one_block else _owners(sequences)
    columns = [s.prompt for s in sequences], [len(s) for s in sequences], widths, owners, everyone
    prompt, fed, width, owner, number = map(torch.tensor, columns)
    skipped, length = prompt.where(owner != number, 0), width if one_block else fed
    own = _starts(length - skipped) - skipped
    return _Places(prompt, skipped, fed, length, width, own, own[owner])


def _owners(sequences: Sequence[_Fed]) -> list[int]:
    """For each sequence the first one that begins as it does, and computes the prompt for both."""
    begun: dict[Sequence[int], list[int]] = {}
    owners = []
    for place, sequence in enumerate(sequences):
        found = begun.setdefault(sequence.parts[0], [])
        owner = next((first for first in found if sequence.begins_as(sequences[first])), place)
        if owner == place:
            found.append(place)
        owners.append(owner)
    return owners


def _starts(counts: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """Where each of several runs of this many begins."""
    return counts.cumsum(dim=0) - counts


def _ranges(starts: Int[Tensor, "*n"], counts: Int[Tensor, "*n"]) -> Int[Tensor, "total"]:
    """The ranges of `counts` numbers each from `starts` on, end to end."""
    counts = counts.flatten()
    return (starts.flatten() - _starts(counts)).repeat_interleave(counts) + torch.arange(int(counts.sum()))


def _fill(blocks: Sequence[Sequence[int]], fed: Sequence[_Fed], *, one_block: bool) -> TokenBatch:
    """Lay the positions end to end and the cells over them; in a lone block, padding too is computed."""
    sequences = [fed[i] for block in blocks for i in block]
    shape = tuple((len(block), len(fed[block[0]])) for block in blocks)
    at = _places(sequences, [width for count, width in shape for _ in range(count)], one_block=one_block)
    ids, first = _ids(sequences), _starts(at.fed + 1)
    computed, known = at.length - at.skipped, at.fed - at.skipped
    input_ids = torch.zeros(int(computed.sum()), dtype=torch.int64)
    input_ids[_ranges(at.own + at.skipped, known)] = ids[_ranges(first + at.skipped, known)]
    in_cells = torch.stack([at.prompt, at.width - at.prompt], dim=1)
    cells = _ranges(torch.stack([at.shared, at.own + at.prompt], dim=1), in_cells)
    predicting, targets = _predicted(sequences, at, first)
    return TokenBatch(
        input_ids=input_ids,
        position_ids=_ranges(at.skipped, computed),
        blocks=shape,
        cells=torch.minimum(cells, at.position(slice(None), at.length - 1).repeat_interleave(at.width)),
        home=_ranges(_starts(at.width) + at.skipped, computed),
        predicting=predicting,
        targets=ids[targets],
        fed_tokens=int(at.fed.sum()),
        routes=_routes(sequences, at),
    )


def _ids(sequences: Sequence[_Fed]) -> Int[Tensor, "tokens"]:
    """The tokens of all sequences, end to end."""
    every = array("q")
    for part in (part for sequence in sequences for part in sequence.parts):
        every.extend(array("q", part))
    return torch.frombuffer(every, dtype=torch.int64)


def _predicted(
    sequences: Sequence[_Fed], at: _Places, first: Int[Tensor, "sequences"]
) -> tuple[Int[Tensor, "tokens"], Int[Tensor, "tokens"]]:
    """The position that predicts each sampled token, and the place of that token among all, which begin at `first`."""
    spans = [(which, *span) for which, sequence in enumerate(sequences) for span in sequence.predicted]
    which, start, count = torch.tensor(spans).T
    positions = _ranges(at.own[which] + start - 1, count)
    positions[_starts(count)] = at.position(which, start - 1)  # of a shared prompt, if the span is the first
    return positions, _ranges(first[which] + start, count)


def _routes(sequences: Sequence[_Fed], at: _Places) -> Routes | None:
    """Experts at each position; padding has none."""
    known = [s.routes for s in sequences if s.routes is not None]
    if not known:
        return None
    if len(known) != len(sequences):
        raise ValueError("some trajectories came with routes and some without")
    sentinel = torch.iinfo(known[0].dtype).max
    parts: list[Tensor] = []
    for routes, skipped, padding in zip(known, at.skipped.tolist(), (at.length - at.fed).tolist(), strict=True):
        parts.append(routes[skipped:])
        if padding:
            parts.append(routes.new_full((padding, *routes.shape[1:]), sentinel))
    return torch.cat(parts)


def _facts(batch: TokenBatch, trajectories: Sequence[Trajectory]) -> MicroBatch:
    """The facts about each sampled token, in the order of `batch.targets`."""
    spans = [span for trajectory in trajectories for span in trajectory.sampled]
    lengths = [trajectory.sampled_tokens for trajectory in trajectories]

    def per_token(values: Sequence[float], counts: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(values, dtype=dtype).repeat_interleave(torch.tensor(counts))

    return MicroBatch(
        batch=batch,
        moves=any(t.advantage != 0.0 for t in trajectories),
        rollout_logprobs=torch.cat([span.logprobs for span in spans]),
        advantages=per_token([t.advantage for t in trajectories], lengths),
        response_tokens=per_token(lengths, lengths),
        group_tokens=per_token([t.group_tokens for t in trajectories], lengths),
        excess=per_token([t.advantage if t.excess is None else t.excess for t in trajectories], lengths),
        response=per_token(range(len(trajectories)), lengths, torch.int64),
        policy_version=per_token(
            [span.policy_version for span in spans], [len(span.token_ids) for span in spans], torch.int64
        ),
    )
