"""Compares the token-level gradient with the sequence-level gradient, on one step of a run.

`steadyrl gap RUN` repeats one global step in memory, from the newest checkpoint, and changes nothing of the run. The
engine samples at θ_old what the run would sample. The batch is split into the N mini-batches of the recipe, and each
update is made as in the run. Before each update, two gradients are compared:

    g = Σ_y Σ_t r_t Â ∇log π_θ(y_t)          eq. 4 of arXiv 2512.01374, the token level, without cap and clip
    G = Σ_y (Π_t r_t) Â Σ_t ∇log π_θ(y_t)    eq. 2, the gradient of eq. 1, the sequence level

with r_t = π_θ(y_t)/μ_old(y_t) and Â instead of R, under the recipe's replay. Both gradients are estimated from the same
random sample of the mini-batch's responses with an advantage. So the comparison measures how far the token level is
from the sequence level on these responses. It does not measure how noisy the sequence level is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steadyrl.algo import Composed, MiniRL, gradient_gap, gram, ledger
from steadyrl.algo.surrogate import GradientGap, Interval
from steadyrl.errors import UserError
from steadyrl.loop import hand_over
from steadyrl.measure.routes import unrouted
from steadyrl.measure.step import step_ledger, update_metrics
from steadyrl.model.loading import Policy
from steadyrl.model.repeatable import repeatable
from steadyrl.order import seed_of
from steadyrl.parts import prepared_parts
from steadyrl.recipe import Recipe
from steadyrl.rollout.advantages import with_advantages
from steadyrl.rollout.rollouter import Rollouter
from steadyrl.run import checkpoint
from steadyrl.train.forward import OldPass, gradient_of
from steadyrl.train.step import GradientStep
from steadyrl.train.trainer import LocalTrainer, micro_batches, minibatches
from steadyrl.types import Trajectory

PARTS = 16
"""Blocks of responses that the bootstrap draws from."""
HELD = 2**27
"""Numbers of gradient in memory at a time, unless one tensor of the model has more."""
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
    with prepared_parts(recipe) as parts, repeatable(parts.trainer.policy.device):
        trainer, rollouter = parts.trainer, parts.rollouter
        trainer.restore(checkpoint.restore(folder, trainer.policy, trainer.optimizer))
        trainer.progress.step = min(trainer.progress.step, max(1, recipe.steps) - 1)  # the last step, if the run ended
        hand_over(rollouter.engine, trainer)
        yield from _repeat(recipe, rollouter, trainer, responses)


def _repeat(recipe: Recipe, rollouter: Rollouter, trainer: LocalTrainer, responses: int) -> Iterator[Compared]:
    step, theta_old, options = trainer.progress.step + 1, trainer.version, recipe.rollout
    groups = rollouter.rollout(step, prompts=options.prompts, responses=options.responses)
    unrouted([c for g in groups for c in g.completions], limit=recipe.update.max_unrouted)
    rewards = rollouter.rewards("train", groups)
    rewards.require(limit=recipe.verifier.max_failures)
    normalise = trainer.objective.normalised
    answered = with_advantages(
        groups, rewards, advantage=rollouter.advantage, normalise=normalise, options=recipe.advantage
    )
    parts = minibatches(answered, trainer.minibatches)
    blocks = [
        _blocks(trainer, part, responses, seed=seed_of(recipe.seed, f"gap/{step}/{number}"))
        for number, part in enumerate(parts)
    ]
    moving, _ = trainer.begin(parts)
    known = rewards.known.view(trainer.minibatches, -1).sum(dim=1).tolist()
    for number, (part, micros) in enumerate(zip(parts, moving, strict=True)):
        lag = trainer.version - theta_old
        gap, reason = _compared(trainer, blocks[number])
        done = trainer.update(number, part, micros)
        yield Compared(
            lag=lag,
            responses=sum(len(s.micro.response.unique()) for block in blocks[number] for s in block),
            gap=gap,
            reason=reason,
            measured={} if done is None else _measured(done, theta_old + lag, known[number]),
        )


def _measured(done: GradientStep, version: int, responses: int) -> dict[str, float]:
    factors = ledger.summary(step_ledger(micro_batches([done]), [done], policy_version=version))
    return factors | update_metrics([done], responses=responses)


def _blocks(
    trainer: LocalTrainer, groups: Sequence[Sequence[Trajectory]], responses: int, *, seed: int
) -> list[list[OldPass]]:
    """Randomly chosen responses with an advantage, in blocks that differ by one at most, each with its θ_old pass."""
    moving = [r for group in groups for r in group if r.advantage != 0.0]
    taken = min(responses, len(moving))
    parts = min(PARTS, taken)
    order = torch.randperm(len(moving), generator=torch.Generator().manual_seed(seed)).tolist()
    return [
        [trainer.old_pass(micro) for micro in trainer.pack([[moving[i] for i in block]])]
        for block in (order[:taken][part::parts] for part in range(parts))
    ]


def _compared(trainer: LocalTrainer, blocks: Sequence[Sequence[OldPass]]) -> tuple[GradientGap | None, str]:
    if len(blocks) < 2:
        return None, "fewer than 2 responses have an advantage"
    products = _products(trainer, blocks)
    try:
        return gradient_gap(products), ""
    except ValueError as error:
        return None, str(error)


def _products(trainer: LocalTrainer, blocks: Sequence[Sequence[OldPass]]) -> Float[Tensor, "2 2 parts parts"]:
    """Inner products of the blocks' gradients, added up over the model, some of its tensors at a time."""
    policy = trainer.policy
    total = torch.zeros((), dtype=torch.float64, device=policy.device)
    for tensors in _portions(policy.model, most=HELD // (2 * len(blocks))):
        of_blocks = [_gradients(policy, block, tensors, temperature=trainer.temperature) for block in blocks]
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
    policy: Policy, block: Sequence[OldPass], tensors: Sequence[nn.Parameter], *, temperature: float
) -> list[Float[Tensor, "2 parameters"]]:
    """Gradients of both levels to some tensors, summed over the responses of a block."""
    sums = [torch.zeros(2, t.numel(), device=t.device) for t in tensors]
    for old in block:
        for level, objective in enumerate(LEVELS):
            loss = partial(objective, responses=1, groups=1)
            found = gradient_of(policy, old, loss, tensors, temperature=temperature)
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
