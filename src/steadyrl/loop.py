"""The loop. One direction, once per global step:

prompts ─► engine samples (μ_old, routes e^μ, policy version) ─► task rewards ─► advantages by group
                                                                                   │
   engine ◄─ weights ─ N × [ forward under replay → ratios → mask → loss → step ] ◄─ forward with θ_old (π_old, e^π)
"""

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError

from steadyrl.algo import ledger
from steadyrl.cold_start import cold_start
from steadyrl.disagreement import replay_effect, route_metrics, unrouted
from steadyrl.engine.returned import NotFinite
from steadyrl.errors import RunStopped
from steadyrl.evaluate import evaluation
from steadyrl.jsonl import Row, Value
from steadyrl.model.attention import describe_rows
from steadyrl.model.checkpoint import CheckpointError, NoRoomError, NotFiniteError, require_finite
from steadyrl.model.moved import LEAST_MOVED, unmoved
from steadyrl.model.packing import pack_responses
from steadyrl.model.repeatable import repeatable
from steadyrl.order import problem_indices
from steadyrl.progress import Bar
from steadyrl.recipe import Recipe
from steadyrl.responses import rollout_rows
from steadyrl.rollout import (
    Counted,
    Group,
    counted,
    counted_tokens,
    require_rewards,
    reward_groups,
    rollout_metrics,
    sample_groups,
    with_advantages,
)
from steadyrl.run import Run
from steadyrl.session import Session
from steadyrl.types import MicroBatch, Response
from steadyrl.update import (
    Forward,
    OldPass,
    Outcome,
    first_forward,
    later_forward,
    learning_rate,
    old_pass,
    old_pass_metrics,
    step_ledger,
    traced,
    update,
    update_metrics,
)

MAX_SKIPPED = 3
"""So many updates in a row without a finite loss and gradient stop the run."""
BRIEF = 64
"""Tokens of the forward that looks at a model before it is saved."""
BROKEN = "in the trainer too: the model is broken"


class TrainingStopped(RunStopped):
    """The run cannot go on by itself; what it needs to be looked into lies in the run directory."""


@dataclass
class Progress:
    """Where a run stands: all that a checkpoint holds beside weights and moments."""

    step: int = 0
    """Global steps taken."""
    policy_version: int = 0
    """Gradient steps taken."""
    skipped_in_a_row: int = 0
    """Updates skipped since the last one that moved the weights."""
    broken: bool = False
    """The last step met log-probabilities that were not finite; nothing is saved until one does not."""


@dataclass
class Clock:
    """Seconds spent in each phase of a step."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time a phase."""
        start = time.perf_counter()
        yield
        self.seconds[f"seconds/{phase}"] = time.perf_counter() - start


def train(session: Session, run: Run, *, stop_asked: Callable[[], bool]) -> tuple[int, int]:
    """Train to the last step of the recipe, or until `stop_asked` after a step; a checkpoint lies at the end.

    Returns:
        The last global step, and how many were taken now.

    Raises:
        TrainingStopped: loss, gradient or log-probabilities were not finite for MAX_SKIPPED updates in a row, or still
            are at the end.
    """
    with repeatable(session.policy.device):
        return _train(session, run, stop_asked)


def _train(session: Session, run: Run, stop_asked: Callable[[], bool]) -> tuple[int, int]:
    recipe = session.recipe
    run.note_engine({**session.engine.facts, "training_forward": describe_rows(not session.policy.one_block)})
    restored = run.restore(session.policy, session.optimizer)
    progress = Progress(**restored)
    if not restored:
        if recipe.cold_start is not None:
            with run.bar("cold start", sum(stage.steps for stage in recipe.cold_start.stages)) as bar:
                cold_start(session, recipe.cold_start, run.cold_start, on_step=_watched(bar, stop_asked))
        _evaluate(session, run, progress, every_mode=True)
        _save(session, run, progress)
    hand_over(session, progress)
    start, said = progress.step, False
    with run.bar("training", recipe.steps, done=progress.step) as bar:
        while progress.step < recipe.steps:
            metrics, ledger_rows = global_step(session, run, progress)
            said = said or _say_if_unmoved(recipe, progress.step, metrics)
            run.log(progress.step, metrics, ledger_rows)
            bar.step(progress.step, metrics)
            last = progress.step == recipe.steps
            if last and progress.broken:
                _give_up(session, run, progress, [], f"log-probabilities were not finite in the last step, {BROKEN}")
            looking = last or (recipe.evaluate.every and progress.step % recipe.evaluate.every == 0)
            if looking and not progress.broken:
                _evaluate(session, run, progress, every_mode=last)
            stopping = stop_asked()
            saving = last or stopping or progress.step % recipe.checkpoints.every == 0
            if saving and not progress.broken:
                _save(session, run, progress)
            if stopping:
                break
    return progress.step, progress.step - start


def _say_if_unmoved(recipe: Recipe, step: int, metrics: Mapping[str, Value]) -> bool:
    """Say on stderr that updates are lost to rounding, once the warm-up is over; whether that was said."""
    share = metrics.get("update/moved")
    warm = step * recipe.update.minibatches > recipe.optimizer.warmup_steps
    if not warm or not isinstance(share, float) or share >= LEAST_MOVED:
        return False
    print(f"steadyrl: {unmoved(share, step=step, dtype=recipe.runtime.dtype)}", file=sys.stderr)
    return True


def _watched(bar: Bar, stop_asked: Callable[[], bool]) -> Callable[[int, float, float | None], None]:
    """Show the cold start; it has no checkpoint to stop at, so an asked-for stop interrupts it."""

    def on_step(step: int, loss: float, accuracy: float | None) -> None:
        bar.cold_start(step, loss, accuracy)
        if stop_asked():
            raise KeyboardInterrupt

    return on_step


def global_step(session: Session, run: Run, progress: Progress) -> tuple[dict[str, Value], list[Row]]:
    """Sample, reward, update N times, and hand the new weights to the engine; the step's metrics and its ledger."""
    recipe, clock, start = session.recipe, Clock(), time.perf_counter()
    step, sampler, version = progress.step + 1, session.engine.policy_version, progress.policy_version
    try:
        with clock("sampling"):
            groups = sample_step(session, step)
    except NotFinite:
        if trainer_is_finite(session, step):
            raise  # the engine alone errs
        return _skip_step(session, run, progress, []), []
    routed = unrouted([c for g in groups for c in g.completions], limit=recipe.update.max_unrouted)
    with clock("rewards"):
        rewards, options = reward_groups(session, "train", groups), recipe.advantage
        responses = with_advantages(
            groups, rewards, advantage=session.advantage, normalise=session.objective.normalised, options=options
        )
        run.log_rollouts(step, rewards.failed, rollout_rows(session, step, groups, rewards, responses))
        require_rewards(rewards, limit=recipe.verifier.max_failures)
        parts = recipe.update.minibatches
        divisors = counted(rewards, parts=parts, options=options)
        tokens = counted_tokens(responses, rewards, parts=parts, options=options)
    with clock("logprobs"):
        forwards, before = begin_updates(session, responses)
        temperature = recipe.rollout.temperature
        looked_at = responses[step % len(responses)]
        effect = replay_effect(
            session.policy, looked_at, micro_tokens=recipe.update.micro_tokens, temperature=temperature
        )
    if before and not bool(torch.cat([s.old_logprobs for s in before]).isfinite().all()):  # one wait for the device
        return _skip_step(session, run, progress, before), []
    progress.broken = False
    with clock("update"):
        outcomes = [
            _update(session, run, progress, step, n, *part)
            for n, part in enumerate(zip(forwards, divisors, tokens, strict=True))
        ]
    with clock("sync"):
        hand_over(session, progress)
    progress.step = step
    seconds = time.perf_counter() - start
    sampled = sum(len(r.completion.token_ids) for group in responses for r in group)
    passes = [*before, *traced(outcomes[:1])]
    rows = step_ledger(passes, outcomes, policy_version=version)
    metrics = {
        "policy_version": sampler,
        **rollout_metrics(groups, rewards, correct_at=recipe.task.correct_at),
        **old_pass_metrics(passes),
        **ledger.summary(rows),
        **route_metrics(passes),
        **routed,
        **effect,
        **update_metrics(outcomes, responses=int(rewards.known.sum())),
        "update/learning_rate": session.optimizer.param_groups[0]["lr"],
        **clock.seconds,
        "seconds/step": seconds,
        "throughput/tokens_per_second": sampled / seconds,
        "memory/peak_gib": _peak_memory(session),
    }
    return metrics, rows


def trainer_is_finite(session: Session, step: int, *, brief: bool = False) -> bool:
    """Whether the trainer computes finite numbers for the prompts of a step; `brief`: for BRIEF tokens of the first."""
    indices = _problems(session, step)[: 1 if brief else None]
    prompts = session.prompts([session.task.example("train", index) for index in indices])
    device = session.policy.device
    with torch.no_grad():
        fed = (prompt.token_ids[: BRIEF if brief else None] for prompt in prompts)
        ids = (torch.tensor([one], device=device) for one in fed)
        return all(bool(session.policy.model(input_ids=one, use_cache=False).logits.isfinite().all()) for one in ids)


def _skip_step(session: Session, run: Run, progress: Progress, minibatch: Sequence[OldPass]) -> dict[str, Value]:
    """A step whose log-probabilities are not finite: nothing is updated, and it counts as a skipped update."""
    progress.step += 1
    progress.skipped_in_a_row += 1
    progress.broken = True
    if progress.skipped_in_a_row == MAX_SKIPPED:
        what = f"log-probabilities, loss or gradient were not finite {MAX_SKIPPED} times in a row, {BROKEN}"
        _give_up(session, run, progress, minibatch, what)
    return {"policy_version": session.engine.policy_version, "update/skipped": session.recipe.update.minibatches}


def _problems(session: Session, step: int) -> list[int]:
    return problem_indices(session.recipe.seed, step, session.recipe.rollout.prompts, session.task.size("train"))


def sample_step(session: Session, step: int) -> list[Group]:
    """What the engine answers to the problems of a step."""
    recipe = session.recipe
    return sample_groups(
        session,
        session.engine,
        "train",
        _problems(session, step),
        responses=recipe.rollout.responses,
        sampling=session.sampling,
        key=f"rollout/{step}",
    )


def begin_updates(
    session: Session, responses: Sequence[Sequence[Response]]
) -> tuple[Sequence[Sequence[Forward]], list[OldPass]]:
    """The forwards of the N updates, not yet begun, and the θ_old pass of what they do not compute themselves."""
    recipe, policy = session.recipe, session.policy
    how: Any = {"mode": recipe.update.replay, "temperature": recipe.rollout.temperature}
    # the first mini-batch is updated at θ_old: the forward of its update is its θ_old pass
    first, *later = [packed(session, part) for part in minibatches(responses, recipe.update.minibatches)]
    resting = [old_pass(policy, micro, **how) for micro in first if not micro.moves]
    passes = [[old_pass(policy, micro, **how) for micro in part] for part in later]
    forwards = [
        [first_forward(policy, micro, **how) for micro in first if micro.moves],
        *([later_forward(policy, s, temperature=how["temperature"]) for s in part if s.micro.moves] for part in passes),
    ]
    return forwards, [*resting, *(s for part in passes for s in part)]


def minibatches(groups: Sequence[Sequence[Response]], parts: int) -> list[Sequence[Sequence[Response]]]:
    """N mini-batches of whole groups, in the order of the prompts."""
    size = len(groups) // parts
    return [groups[n * size : (n + 1) * size] for n in range(parts)]


def packed(session: Session, groups: Sequence[Sequence[Response]]) -> list[MicroBatch]:
    """Groups as micro-batches."""
    return pack_responses(
        [response for group in groups for response in group],
        micro_tokens=session.recipe.update.micro_tokens,
        one_block=session.policy.one_block,
        device=session.policy.device,
    )


def _update(
    session: Session,
    run: Run,
    progress: Progress,
    step: int,
    number: int,
    forwards: Sequence[Forward],
    divisor: Counted,
    tokens: int,
) -> Outcome | None:
    """One of the N gradient steps, and the book-keeping of those that were not finite."""
    outcome = take_update(session, step, number, forwards, divisor, tokens)
    if outcome is not None and outcome.finite:
        progress.policy_version += 1
        progress.skipped_in_a_row = 0
    elif outcome is not None:
        progress.skipped_in_a_row += 1
        if progress.skipped_in_a_row == MAX_SKIPPED:
            what = f"loss or gradient was not finite for {MAX_SKIPPED} updates in a row"
            _give_up(session, run, progress, traced([outcome]), what, step=step)
    return outcome


def take_update(
    session: Session, step: int, number: int, forwards: Sequence[Forward], divisor: Counted, tokens: int
) -> Outcome | None:
    """Update `number` of a step, counted from 0, with its learning rate; divided by `divisor`, or by `tokens`."""
    recipe = session.recipe
    n = recipe.update.minibatches
    for group in session.optimizer.param_groups:
        group["lr"] = learning_rate(
            (step - 1) * n + number + 1,
            peak=recipe.optimizer.learning_rate,
            total=recipe.steps * n,
            warmup=recipe.optimizer.warmup_steps,
            schedule=recipe.optimizer.schedule,
        )
    return update(
        session.policy,
        session.optimizer,
        session.objective,
        forwards,
        responses=divisor.responses,
        groups=divisor.groups,
        batch_tokens=tokens,
        max_grad_norm=recipe.optimizer.max_grad_norm,
    )


def _give_up(
    session: Session, run: Run, progress: Progress, minibatch: Sequence[OldPass], what: str, *, step: int | None = None
) -> NoReturn:
    """Keep the last good weights and the batch, and stop. No skipped update has touched the weights."""
    broken = progress.broken or not _is_usable(session, progress)
    try:
        where = run.save_incident(session.policy, session.optimizer, vars(progress), minibatch, broken=broken)
        good = (where / "model").is_dir()
        kept = f"The last good state and the batch are in {where}" if good else "No good state was saved before"
    except (OSError, SafetensorError, NoRoomError, CheckpointError) as error:
        kept = f"The state could not be written to incident ({error}); the checkpoints are intact"
    raise TrainingStopped(
        f"step {progress.step if step is None else step}: {what}. {kept}. "
        "Lower optimizer.learning_rate, or use float32 weights"
    )


def _is_usable(session: Session, progress: Progress) -> bool:
    """Whether the weights are finite, and what the trainer computes with them for a prompt of the next step."""
    try:
        require_finite(session.policy.model)
    except NotFiniteError:
        return False
    return trainer_is_finite(session, progress.step + 1, brief=True)


def _save(session: Session, run: Run, progress: Progress) -> None:
    """Write a checkpoint, of weights that are finite and give finite numbers."""
    try:
        require_finite(session.policy.model)
    except NotFiniteError as error:
        _give_up(session, run, progress, [], str(error))
    if not trainer_is_finite(session, progress.step + 1, brief=True):
        _give_up(session, run, progress, [], "the model's logits are not finite: its weights overflow")
    run.save(session.policy, session.optimizer, vars(progress), doubtful=progress.skipped_in_a_row > 0)


def hand_over(session: Session, progress: Progress) -> None:
    """Give the engine the weights of now."""
    weights = dict(session.policy.model.named_parameters())
    session.engine.load_weights(weights, policy_version=progress.policy_version)


def _evaluate(session: Session, run: Run, progress: Progress, *, every_mode: bool) -> None:
    try:
        found = evaluation(session, every_mode=every_mode)
    except NotFinite:
        if trainer_is_finite(session, progress.step + 1):
            raise  # the engine alone errs
        _give_up(session, run, progress, [], f"log-probabilities were not finite in the evaluation, {BROKEN}")
    run.log_evaluation(progress.step, found.rows, found.samples)
    require_rewards(found.last, limit=session.recipe.verifier.max_failures)


def _peak_memory(session: Session) -> float:
    """GiB, of the GPU where there is one."""
    if session.policy.device.type == "cuda":
        return torch.cuda.max_memory_allocated(session.policy.device) / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
