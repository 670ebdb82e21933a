"""The trainer: the θ_old pass and N gradient updates on the responses of a global step."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from steadyrl.algo import Objective
from steadyrl.clock import Clock
from steadyrl.model.loading import Policy
from steadyrl.model.packing import pack
from steadyrl.training.forward import Loss, OldPass, Replay, Trace, old_pass, update_at_old, update_later
from steadyrl.training.schedule import Schedule
from steadyrl.training.step import GradientStep, update
from steadyrl.types import MicroBatch, Trajectory

MAX_SKIPPED = 3
"""So many updates in a row without a finite loss and gradient stop a run."""

BROKEN = "in the trainer too: the model is broken"
"""Where log-probs are not finite because of the weights, and not of the engine."""

Groups = Sequence[Sequence[Trajectory]]
"""The trajectories of a step, group by group."""


@dataclass
class Progress:
    """How far training has come: all that a checkpoint holds beside weights and moments."""

    step: int = 0
    """Global steps taken."""
    policy_version: int = 0
    """Gradient steps taken."""
    skipped_in_a_row: int = 0
    """Updates skipped since the last one that moved the weights."""
    broken: bool = False
    """The last step met log-probs that were not finite; nothing is saved until one does not."""


class Diverged(Exception):
    """Too many updates in a row were not finite."""

    def __init__(self, what: str, minibatch: Sequence[OldPass] = ()):
        super().__init__(what)
        self.minibatch = tuple(minibatch)
        """The micro-batches of the last of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What happened in a global step, per token."""

    old: tuple[OldPass, ...]
    """The θ_old pass over all of its responses."""
    updates: tuple[GradientStep | None, ...]
    """Its gradient steps, in order; None for a mini-batch that moves nothing."""
    version: int
    """Policy version of θ_old."""
    learning_rate: float
    """Of the last gradient step."""
    seconds: Mapping[str, float]
    """Time of its phases, `logprobs` (the θ_old pass) and `update`."""


@dataclass(kw_only=True)
class LocalTrainer:
    """π, trained in this process. See `Trainer`."""

    policy: Policy
    """The model and its tokenizer."""
    optimizer: torch.optim.Optimizer
    """Over its weights."""
    objective: Objective
    """What is maximised."""
    schedule: Schedule
    """The learning rate of each gradient step."""
    replay: Replay = "none"
    """Whose experts the updates use."""
    minibatches: int = 1
    """N: gradient steps on one batch of responses."""
    micro_tokens: int = 16384
    """Most cells of one forward."""
    temperature: float = 1.0
    """Softmax temperature of the rollouts, which π is computed at too."""
    max_grad_norm: float | None = 1.0
    """The norm that a gradient is scaled down to."""

    def __post_init__(self) -> None:
        """Begin with nothing trained."""
        self.progress = Progress()

    @property
    def version(self) -> int:
        """Gradient steps behind the weights of now."""
        return self.progress.policy_version

    def step(self, groups: Groups) -> Trained | None:
        """Compute π_old, and update N times; None where π_old is not finite, and nothing was updated.

        Args:
            groups: responses with advantages, all of a group together; cut into N mini-batches in this order.

        Raises:
            Diverged: the last MAX_SKIPPED updates in a row were not finite.
        """
        clock, version = Clock(self.policy.device), self.version
        parts = minibatches(groups, self.minibatches)
        with clock("logprobs"):
            moving, known = self.begin(parts)
        if not are_finite(known):
            self.skip(known)
            return None
        self.progress.broken = False
        with clock("update"):
            updates = [self.update(number, parts[number], micros) for number, micros in enumerate(moving)]
            self.optimizer.zero_grad()  # what samples next needs the memory
        self.progress.step += 1
        return Trained(
            old=(*known, *micro_batches(updates[:1])),
            updates=tuple(updates),
            version=version,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            seconds=clock.seconds,
        )

    def begin(self, parts: Sequence[Groups]) -> tuple[list[Sequence[MicroBatch | OldPass]], list[OldPass]]:
        """Compute π_old of the mini-batches of a step, before the first update.

        The first mini-batch is updated at θ_old, so the forward of its update is its θ_old pass.

        Returns:
            The micro-batches with an advantage, of each mini-batch; and the θ_old pass of all that has one by now.
        """
        first = self.pack(parts[0])
        resting = [self.old_pass(micro) for micro in first if not micro.moves]
        passes = [[self.old_pass(micro) for micro in self.pack(part)] for part in parts[1:]]
        moving: list[Sequence[MicroBatch | OldPass]] = [[micro for micro in first if micro.moves]]
        moving += [[old for old in part if old.micro.moves] for part in passes]
        return moving, [*resting, *(old for part in passes for old in part)]

    def pack(self, groups: Groups) -> list[MicroBatch]:
        """Lay out groups as micro-batches, on the device."""
        flat = [trajectory for group in groups for trajectory in group]
        micros = pack(flat, micro_tokens=self.micro_tokens, one_block=self.policy.one_block)
        return [micro.to(self.policy.device) for micro in micros]

    def old_pass(self, micro: MicroBatch) -> OldPass:
        """Compute π_old of a micro-batch."""
        return old_pass(self.policy, micro, replay=self.replay, temperature=self.temperature)

    def update(self, number: int, groups: Groups, micros: Sequence[MicroBatch | OldPass]) -> GradientStep | None:
        """Take gradient step `number` of a global step, counted from 0, and note whether it was finite.

        Args:
            number: which of the N.
            groups: its mini-batch.
            micros: those of its micro-batches that have an advantage; what has no θ_old pass yet is at θ_old.

        Raises:
            Diverged: it was not finite, nor were the MAX_SKIPPED − 1 before it.
        """
        rate = self.schedule.at(self.progress.step * self.minibatches + number + 1)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = partial(self.objective, **denominators(groups))
        backwards = [partial(self._backward, micro, loss) for micro in micros]
        done = update(self.policy.model, self.optimizer, backwards, max_grad_norm=self.max_grad_norm)
        if done is not None and done.finite:
            self.progress.policy_version += 1
            self.progress.skipped_in_a_row = 0
        elif done is not None:
            self.progress.skipped_in_a_row += 1
            if self.progress.skipped_in_a_row == MAX_SKIPPED:
                what = f"loss or gradient was not finite for {MAX_SKIPPED} updates in a row"
                raise Diverged(what, micro_batches([done]))
        return done

    def _backward(self, micro: MicroBatch | OldPass, loss: Loss) -> Trace:
        if isinstance(micro, OldPass):
            return update_later(self.policy, micro, loss, temperature=self.temperature)
        return update_at_old(self.policy, micro, loss, replay=self.replay, temperature=self.temperature)

    def skip(self, minibatch: Sequence[OldPass] = ()) -> None:
        """Count a global step whose log-probs are not finite: nothing is updated.

        Raises:
            Diverged: it is the last of MAX_SKIPPED in a row.
        """
        self.progress.step += 1
        self.progress.skipped_in_a_row += 1
        self.progress.broken = True
        if self.progress.skipped_in_a_row == MAX_SKIPPED:
            what = f"log-probabilities, loss or gradient were not finite {MAX_SKIPPED} times in a row, {BROKEN}"
            raise Diverged(what, minibatch)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and value of each weight."""
        yield from self.policy.model.named_parameters()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds beside weights and moments."""
        return asdict(self.progress)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; the weights and moments were loaded already."""
        self.progress = Progress(**state)


def minibatches(groups: Groups, parts: int) -> list[Groups]:
    """Cut groups into equal mini-batches, in the order of the prompts."""
    size = len(groups) // parts
    return [groups[n * size : (n + 1) * size] for n in range(parts)]


def denominators(groups: Groups) -> dict[str, int]:
    """Count what an objective divides by: the responses of a mini-batch that count, their groups, and their tokens."""
    counts = [[response.counted for response in group] for group in groups]
    return {
        "responses": sum(map(sum, counts)),
        "groups": sum(map(any, counts)),
        "batch_tokens": sum(group[0].group_tokens for group, some in zip(groups, counts, strict=True) if any(some)),
    }


def micro_batches(updates: Sequence[GradientStep | None]) -> list[OldPass]:
    """Return the micro-batches that updates have seen."""
    return [trace.old for done in updates if done is not None for trace in done.traces]


def are_finite(passes: Sequence[OldPass]) -> bool:
    """Tell whether all log π_old are finite; waits for the device once."""
    return not passes or bool(torch.cat([old.old_logprobs for old in passes]).isfinite().all())
