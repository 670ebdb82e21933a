"""Is the token level good enough? Its gradient against that of the sequence level, on a step of a run's own.

`steadyrl gap RUN` repeats one global step in memory, from the newest checkpoint, and changes nothing of the run. The
engine samples at θ_old what the run would sample; the batch is split into the N mini-batches of the recipe; before
each of the N updates, which are then made as the run would make them, two gradients are compared:

    g = Σ_y Σ_t r_t Â ∇log π_θ(y_t)          eq. 4 of arXiv 2512.01374, the token level, without cap and clip
    G = Σ_y (Π_t r_t) Â Σ_t ∇log π_θ(y_t)    eq. 2, the gradient of eq. 1, the sequence level

with r_t = π_θ(y_t)/μ_old(y_t) and Â in the place of R, over a random part of the mini-batch's responses with an
advantage, under the recipe's replay. Both gradients are estimates from the same responses: the comparison says how far
the token level is from the sequence level on them, and not how noisy the sequence level is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steadyrl.algo import Composed, MiniRL, gradient_gap, gram, ledger
from steadyrl.algo.surrogate import GradientGap, Interval
from steadyrl.disagreement import unrouted
from steadyrl.errors import UserError
from steadyrl.loop import Progress, begin_updates, hand_over, minibatches, packed, sample_step, take_update
from steadyrl.model import checkpoint
from steadyrl.model.repeatable import repeatable
from steadyrl.order import seed_of
from steadyrl.recipe import Recipe
from steadyrl.rollout import counted, counted_tokens, require_rewards, reward_groups, with_advantages
from steadyrl.session import Session, open_session
from steadyrl.types import Response
from steadyrl.update import OldPass, Outcome, later_forward, old_pass, step_ledger, traced, update_metrics

PARTS = 16
"""Blocks of responses that the bootstrap draws from."""
HELD = 2**27
"""Numbers of gradient that are held at a time, unless one tensor of the model has more."""
LEVELS = (MiniRL(clip=False, weight_cap=None), Composed(level="sequence", weight_cap=None, trust="none"))
"""Eq. 4 and eq. 2."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """One mini-batch, just before its update."""

    lag: int
    """Gradient steps since θ_old."""
    responses: int
    """Responses that the gradients were compared on."""
    gap: GradientGap | None
    """What came of it; None where `reason` says why not."""
    reason: str
    """Why the gradients have no direction to compare."""
    measured: dict[str, float]
    """Over all responses of the mini-batch with an advantage: the metrics of its update, and of both factors."""


def compare(folder: Path, recipe: Recipe, *, responses: int) -> Iterator[Compared]:
    """Each of the N mini-batches of the step that follows a checkpoint, or of the last if the run has ended.

    Args:
        folder: the checkpoint.
        recipe: of its run.
        responses: how many responses of a mini-batch are compared, at most.

    Raises:
        UserError: fewer than 2 responses were asked for, or the run cannot be gone on with.
    """
    if responses < 2:
        raise UserError(f"--responses = {responses}: an interval needs at least 2 responses; the default is 64")
    with open_session(recipe) as session, repeatable(session.policy.device):
        progress = Progress(**checkpoint.restore(folder, session.policy, session.optimizer))
        hand_over(session, progress)
        yield from _repeat(session, min(progress.step + 1, max(1, recipe.steps)), responses)


def _repeat(session: Session, step: int, responses: int) -> Iterator[Compared]:
    recipe, version = session.recipe, session.engine.policy_version
    groups = sample_step(session, step)
    unrouted([c for g in groups for c in g.completions], limit=recipe.update.max_unrouted)
    rewards, options = reward_groups(session, "train", groups), recipe.advantage
    require_rewards(rewards, limit=recipe.verifier.max_failures)
    answered = with_advantages(
        groups, rewards, advantage=session.advantage, normalise=session.objective.normalised, options=options
    )
    n = recipe.update.minibatches
    blocks = [
        _blocks(session, part, responses, seed=seed_of(recipe.seed, f"gap/{step}/{number}"))
        for number, part in enumerate(minibatches(answered, n))
    ]
    forwards, _ = begin_updates(session, answered)
    lag, divisors = 0, counted(rewards, parts=n, options=options)
    tokens, known = counted_tokens(answered, rewards, parts=n, options=options), rewards.known.view(n, -1).sum(dim=1)
    for number, divisor in enumerate(divisors):
        gap, reason = _compared(session, blocks[number])
        outcome = take_update(session, step, number, forwards[number], divisor, tokens[number])
        yield Compared(
            lag=lag,
            responses=sum(len(s.micro.response.unique()) for block in blocks[number] for s in block),
            gap=gap,
            reason=reason,
            measured={} if outcome is None else _measured(outcome, version + lag, int(known[number])),
        )
        lag += outcome is not None and outcome.finite


def _measured(outcome: Outcome, version: int, responses: int) -> dict[str, float]:
    factors = ledger.summary(step_ledger(traced([outcome]), [outcome], policy_version=version))
    return factors | update_metrics([outcome], responses=responses)


def _blocks(
    session: Session, groups: Sequence[Sequence[Response]], responses: int, *, seed: int
) -> list[list[OldPass]]:
    """Randomly chosen responses with an advantage, in blocks that differ by one at most, each after its θ_old pass."""
    moving = [r for group in groups for r in group if r.advantage != 0.0]
    taken = min(responses, len(moving))
    parts = min(PARTS, taken)
    order = torch.randperm(len(moving), generator=torch.Generator().manual_seed(seed)).tolist()
    how = {"mode": session.recipe.update.replay, "temperature": session.recipe.rollout.temperature}
    return [
        [old_pass(session.policy, micro, **how) for micro in packed(session, [[moving[i] for i in block]])]
        for block in (order[:taken][part::parts] for part in range(parts))
    ]


def _compared(session: Session, blocks: Sequence[Sequence[OldPass]]) -> tuple[GradientGap | None, str]:
    if len(blocks) < 2:
        return None, "fewer than 2 responses have an advantage"
    products = _products(session, blocks)
    try:
        return gradient_gap(products), ""
    except ValueError as error:
        return None, str(error)


def _products(session: Session, blocks: Sequence[Sequence[OldPass]]) -> Float[Tensor, "2 2 parts parts"]:
    """Inner products of the blocks' gradients, added up over the model, some of its tensors at a time."""
    total = torch.zeros((), dtype=torch.float64, device=session.policy.device)
    for tensors in _portions(session.policy.model, most=HELD // (2 * len(blocks))):
        of_blocks = [_gradients(session, block, tensors) for block in blocks]
        for of_tensor in zip(*of_blocks, strict=True):  # [parts] of [2, parameters]
            for some in torch.stack(of_tensor, dim=1).split(2**20, dim=2):
                total = total + gram(*some)
    return total


def _portions(model: nn.Module, *, most: int) -> Iterator[list[nn.Parameter]]:
    """The trained tensors, as many together as have at most `most` numbers, or one."""
    held: list[nn.Parameter] = []
    for tensor in (p for p in model.parameters() if p.requires_grad):
        if held and sum(t.numel() for t in held) + tensor.numel() > most:
            yield held
            held = []
        held.append(tensor)
    yield held


def _gradients(
    session: Session, block: Sequence[OldPass], tensors: Sequence[nn.Parameter]
) -> list[Float[Tensor, "2 parameters"]]:
    """Gradients of both levels to some tensors, summed over the responses of a block."""
    sums = [torch.zeros(2, t.numel(), device=t.device) for t in tensors]
    for old in block:
        tokens = old.micro.tokens(old.old_logprobs)
        for level, objective in enumerate(LEVELS):
            temperature = session.recipe.rollout.temperature
            with later_forward(session.policy, old, temperature=temperature) as (logprobs, _):
                value = objective(logprobs, tokens, responses=1, groups=1).surrogate.sum()
                found = torch.autograd.grad(value, tensors, allow_unused=True, materialize_grads=True)
            for total, gradient in zip(sums, found, strict=True):
                total[level] += gradient.flatten()
    return sums


def table(rows: Sequence[Compared]) -> str:
    """The rows for people, and what their columns are."""
    head = ("mini-batch", "lag", "k3 mismatch", "k3 staleness", "value gap", "Δ [95%]", "|Δ| ≤")
    head += ("responses", "cosine [95%]", "‖g−G‖/‖G‖ [95%]")
    cells = [head, *(_cells(number, row) for number, row in enumerate(rows, start=1))]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    lines += [f"mini-batch {n}: {row.reason}" for n, row in enumerate(rows, start=1) if row.gap is None]
    return "\n".join(lines)


def _cells(number: int, row: Compared) -> tuple[str, ...]:
    said = row.measured
    factors = ["–"] * 5
    if said:
        k3 = [f"{said[f'{name}/k3']:.1e} ± {said[f'{name}/k3_margin']:.0e}" for name in ("mismatch", "staleness")]
        delta = Interval(*(said[f"surrogate/{name}"] for name in ("delta", "delta_low", "delta_high")))
        rest = [f"{said[f'surrogate/{name}']:.1e}" for name in ("value_gap", "delta_bound")]
        factors = [*k3, rest[0], _interval(delta, ".1e"), rest[1]]
    gaps = ["–"] * 2 if row.gap is None else [_interval(interval, ".4f") for interval in row.gap]
    return str(number), str(row.lag), *factors, str(row.responses), *gaps


def _interval(interval: Interval, form: str) -> str:
    value, low, high = (format(x, form) for x in interval)
    return f"{value} [{low}, {high}]"
