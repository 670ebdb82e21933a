"""The loop. One direction, once per global step:

prompts ─► engine samples (μ_old, routes e^μ, policy version) ─► verifier's rewards ─► advantages by group
                                                                                           │
   engine ◄─ weights ─ N × [ forward under replay → ratios → mask → loss → step ] ◄─ θ_old pass (π_old, e^π)

Sampling waits for the weights of the step before; the rewards for all responses; the θ_old pass for all rewards; the
updates for π_old of every mini-batch but the first, whose forward is its θ_old pass; the engine for all updates.
"""

from steadyrl.clock import Clock
from steadyrl.cold_start import StopAsked, cold_start
from steadyrl.engine.base import Engine
from steadyrl.engine.returned import NotFinite
from steadyrl.evaluation import Evaluator
from steadyrl.guard import ModelGuard
from steadyrl.measure.routes import replay_effect, unrouted
from steadyrl.measure.step import step_metrics
from steadyrl.model.attention import describe_rows
from steadyrl.model.repeatable import repeatable
from steadyrl.recipe import Recipe
from steadyrl.rollout.advantages import with_advantages
from steadyrl.rollout.rollouter import Rollouter
from steadyrl.run.directory import Run
from steadyrl.run.logs import Row, Value
from steadyrl.training.trainer import BROKEN, Diverged, LocalTrainer


def train(
    recipe: Recipe,
    rollouter: Rollouter,
    trainer: LocalTrainer,
    evaluator: Evaluator,
    run: Run,
    *,
    stop_asked: StopAsked,
) -> int:
    """Train to the last step of the recipe, or until `stop_asked` after a step, and save a checkpoint at the end.

    Returns:
        How many global steps were taken now.

    Raises:
        TrainingStopped: loss, gradient or log-probs were not finite for MAX_SKIPPED updates in a row, or still are at
            the end.
    """
    guard = ModelGuard(trainer=trainer, rollouter=rollouter, run=run, prompts=recipe.rollout.prompts)
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
        start, every = trainer.progress.step, recipe.evaluate.every
        with run.bar("training", recipe.steps, done=start) as bar:
            for step in range(start + 1, recipe.steps + 1):
                metrics, ledger = global_step(recipe, rollouter, trainer, guard)
                run.log(step, metrics, ledger)
                bar.step(step, metrics)
                last, usable = step == recipe.steps, not trainer.progress.broken
                if last and not usable:
                    guard.stop(f"log-probabilities were not finite in the last step, {BROKEN}")
                if usable and (last or (every and step % every == 0)):
                    guard.evaluate(evaluator, every_mode=last)
                stopping = stop_asked()
                if usable and (last or stopping or step % recipe.checkpoints.every == 0):
                    guard.save()
                if stopping:
                    break
    return trainer.progress.step - start


def global_step(
    recipe: Recipe, rollouter: Rollouter, trainer: LocalTrainer, guard: ModelGuard
) -> tuple[dict[str, Value], list[Row]]:
    """Sample, reward, update N times, and give the engine the new weights; the step's metrics and its ledger.

    Raises:
        TrainingStopped: too many updates in a row were not finite.
    """
    clock, step = Clock(trainer.policy.device), trainer.progress.step + 1
    skipped: dict[str, Value] = {"policy_version": trainer.version, "update/skipped": trainer.minibatches}
    try:
        with clock("sampling"):
            groups = rollouter.rollout(step, prompts=recipe.rollout.prompts, responses=recipe.rollout.responses)
        routed = unrouted([c for group in groups for c in group.completions], limit=recipe.update.max_unrouted)
        with clock("rewards"):
            rewards, normalise = rollouter.rewards("train", groups), trainer.objective.normalised
            responses = with_advantages(
                groups, rewards, advantage=rollouter.advantage, normalise=normalise, options=recipe.advantage
            )
            guard.run.log_rollouts(step, groups, rewards, responses, text=rollouter.text)
            rewards.require(limit=recipe.verifier.max_failures)
        with clock("logprobs"):
            looked_at = trainer.pack([responses[step % len(responses)]])
            effect = replay_effect(trainer.policy, looked_at, temperature=trainer.temperature)
        trained = trainer.step(responses)
    except NotFinite as error:
        guard.skip(error)
        return skipped, []
    except Diverged as error:
        guard.stop(str(error), error.minibatch, step=step)
    if trained is None:
        return skipped, []
    with clock("sync"):
        hand_over(rollouter.engine, trainer)
    metrics, ledger = step_metrics(groups, rewards, trained, clock, correct_at=recipe.task.correct_at)
    return {**metrics, **routed, **effect}, ledger


def hand_over(engine: Engine, trainer: LocalTrainer) -> None:
    """Give the engine the weights of now."""
    engine.update_weights(trainer.weights(), version=trainer.version)
