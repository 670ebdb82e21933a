"""The loop. One direction, once per global step:

prompts ─► engine samples (μ_old, routes e^μ, policy version) ─► verifier's rewards ─► advantages by group
                                                                                           │
   engine ◄─ weights ─ N × [ forward under replay → ratios → mask → loss → step ] ◄─ θ_old pass (π_old, e^π)

Sampling waits for the weights of the step before; the rewards for all responses; the θ_old pass for all rewards; the
updates for π_old of every mini-batch but the first, whose forward is its θ_old pass; the hand-over for all updates.
"""

from steadyrl.clock import Clock, peak_memory
from steadyrl.cold_start import StopAsked, cold_start
from steadyrl.config import Recipe
from steadyrl.engine.base import Engine
from steadyrl.engine.returned import NotFinite
from steadyrl.evaluate import Evaluator
from steadyrl.guard import Guard
from steadyrl.jsonl import Row, Value
from steadyrl.measure.routes import replay_effect, unrouted
from steadyrl.measure.step import step_metrics
from steadyrl.model.attention import describe_rows
from steadyrl.model.moved import unmoved
from steadyrl.model.repeatable import repeatable
from steadyrl.responses import chosen_groups, rollout_rows
from steadyrl.rollout.advantages import with_advantages
from steadyrl.rollout.rollouter import Rollouter
from steadyrl.run import Run
from steadyrl.terminal import tell
from steadyrl.train.trainer import Diverged, LocalTrainer


def train(
    recipe: Recipe,
    rollouter: Rollouter,
    trainer: LocalTrainer,
    evaluator: Evaluator,
    run: Run,
    *,
    stop_asked: StopAsked,
) -> tuple[int, int]:
    """Train to the last step of the recipe, or until `stop_asked` after a step, and save a checkpoint at the end.

    Returns:
        The last global step, and how many were taken now.

    Raises:
        TrainingStopped: loss, gradient or log-probs were not finite for MAX_SKIPPED updates in a row, or still are at
            the end.
    """
    guard = Guard(trainer=trainer, rollouter=rollouter, run=run, prompts=recipe.rollout.prompts)
    run.note_engine({**rollouter.engine.facts, "training_forward": describe_rows(not trainer.policy.one_block)})
    with repeatable(trainer.policy.device):
        if state := run.restore(trainer.policy, trainer.optimizer):
            trainer.restore(state)
        else:
            if recipe.cold_start is not None:
                cold_start(recipe, trainer.policy, rollouter, evaluator, run, stop_asked=stop_asked)
            guard.evaluate(evaluator, every_mode=True)
            guard.save()
        hand_over(rollouter.engine, trainer)
        start = trainer.progress.step
        _steps(recipe, rollouter, trainer, evaluator, guard, stop_asked)
    return trainer.progress.step, trainer.progress.step - start


def _steps(
    recipe: Recipe,
    rollouter: Rollouter,
    trainer: LocalTrainer,
    evaluator: Evaluator,
    guard: Guard,
    stop_asked: StopAsked,
) -> None:
    """All steps that are left, each followed by what is due: the log, an evaluation, a checkpoint."""
    told, every = False, recipe.evaluate.every
    with guard.run.bar("training", recipe.steps, done=trainer.progress.step) as bar:
        for step in range(trainer.progress.step + 1, recipe.steps + 1):
            try:
                metrics, ledger = global_step(recipe, rollouter, trainer, guard)
            except Diverged as error:
                guard.stop(str(error), error.minibatch, step=step)
            warm = step * trainer.minibatches > recipe.optimizer.warmup_steps
            if not told and warm and (lost := unmoved(metrics, step=step, dtype=recipe.runtime.dtype)):
                told = True
                tell(lost)
            guard.run.log(step, metrics, ledger)
            bar.step(step, metrics)
            last, usable = step == recipe.steps, not trainer.progress.broken
            if last and not usable:
                guard.stop(
                    "log-probabilities were not finite in the last step, in the trainer too: the model is broken"
                )
            if usable and (last or (every and step % every == 0)):
                guard.evaluate(evaluator, every_mode=last)
            stopping = stop_asked()
            if usable and (last or stopping or step % recipe.checkpoints.every == 0):
                guard.save()
            if stopping:
                break


def global_step(
    recipe: Recipe, rollouter: Rollouter, trainer: LocalTrainer, guard: Guard
) -> tuple[dict[str, Value], list[Row]]:
    """Sample, reward, update N times, and give the engine the new weights; the step's metrics and its ledger.

    Raises:
        Diverged: too many updates in a row were not finite.
    """
    clock, step, version = Clock(trainer.policy.device), trainer.progress.step + 1, rollouter.engine.policy_version
    skipped: dict[str, Value] = {"policy_version": version, "update/skipped": trainer.minibatches}
    with clock("sampling"):
        try:
            groups = rollouter.rollout(step, prompts=recipe.rollout.prompts, responses=recipe.rollout.responses)
        except NotFinite:
            if guard.finite():
                raise  # the engine alone errs
            trainer.skip()
            return skipped, []
    routed = unrouted([c for group in groups for c in group.completions], limit=recipe.update.max_unrouted)
    with clock("rewards"):
        rewards = rollouter.rewards("train", groups)
        normalise = trainer.objective.normalised
        responses = with_advantages(groups, rewards, normalise=normalise, options=recipe.advantage)
        chosen = chosen_groups(step, len(groups), groups=recipe.rollouts.groups, every=recipe.rollouts.every)
        rows = rollout_rows(rollouter.text, groups, rewards, responses, chosen=chosen)
        guard.run.log_rollouts(step, rewards.failed, rows)
        rewards.require(limit=recipe.verifier.max_failures)
    with clock("logprobs"):
        looked_at = trainer.pack([responses[step % len(responses)]])
        effect = replay_effect(trainer.policy, looked_at, temperature=trainer.temperature)
    trained = trainer.step(responses)
    if trained is None:
        return skipped, []
    with clock("sync"):
        hand_over(rollouter.engine, trainer)
    seconds = clock.total(trained.seconds)
    tokens = sum(len(completion.token_ids) for group in groups for completion in group.completions)
    measured, ledger = step_metrics(groups, rewards, trained, correct_at=recipe.task.correct_at)
    metrics: dict[str, Value] = {
        "policy_version": version,
        **measured,
        **routed,
        **effect,
        **clock.seconds,
        "throughput/tokens_per_second": tokens / seconds,
        "memory/peak_gib": peak_memory(trainer.policy.device),
    }
    return metrics, ledger


def hand_over(engine: Engine, trainer: LocalTrainer) -> None:
    """Give the engine the weights of now."""
    engine.load_weights(dict(trainer.weights()), policy_version=trainer.version)
