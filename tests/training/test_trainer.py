"""The trainer: what it counts, and when it gives up."""

from dataclasses import replace

import pytest
import torch

from builders import random_ids, response, tiny_policy
from steadyrl import Recipe
from steadyrl.algo import MiniRL
from steadyrl.training.schedule import Schedule
from steadyrl.training.trainer import MAX_SKIPPED, Diverged, LocalTrainer, Progress, minibatches
from steadyrl.types import Trajectory


def trainer(**options) -> LocalTrainer:
    policy = tiny_policy()
    return LocalTrainer(
        policy=policy,
        optimizer=torch.optim.SGD(policy.model.parameters(), lr=0.0),
        objective=MiniRL(),
        schedule=Schedule(peak=0.1, total=8, shape="linear"),
        **options,
    )


def groups(count: int = 4, *, seed: int = 0) -> list[list[Trajectory]]:
    """Groups of two responses, one with a positive and one with a negative advantage."""
    return [
        [
            response(random_ids(4, seed=seed + n), random_ids(5, seed=90 + 2 * n + i), advantage=advantage)
            for i, advantage in enumerate((0.5, -0.5))
        ]
        for n in range(count)
    ]


def test_a_new_trainer_has_done_nothing() -> None:
    assert trainer().progress == Progress(step=0, policy_version=0, skipped_in_a_row=0, broken=False)


def test_the_usual_settings_are_those_of_a_recipe() -> None:
    one, usual = trainer(), Recipe.load("demo")
    assert (one.replay, one.minibatches, one.temperature) == ("none", 1, usual.rollout.temperature)
    assert one.micro_tokens == 16384
    assert one.max_grad_norm == usual.optimizer.max_grad_norm


def test_each_mini_batch_is_a_gradient_step_with_its_own_rate() -> None:
    one = trainer(minibatches=2)
    first = one.step(groups())
    assert first is not None
    assert (first.version, one.version, one.progress.step) == (0, 2, 1)
    assert first.learning_rate == pytest.approx(0.1 * (1 - 1 / 8))  # gradient step 2 of 8
    second = one.step(groups())
    assert second is not None
    assert second.version == 2
    assert second.learning_rate == pytest.approx(0.1 * (1 - 3 / 8))
    assert all(p.grad is None for p in one.policy.model.parameters())  # the memory is free while the engine samples


def test_the_theta_old_pass_covers_every_response_once() -> None:
    done = trainer(minibatches=2).step(groups())
    assert done is not None
    assert sum(len(old.old_logprobs) for old in done.old) == 4 * 2 * 5
    assert [len(part) for part in minibatches(groups(), 2)] == [2, 2]


def test_steps_that_are_skipped_end_a_run_at_the_third_in_a_row() -> None:
    one = trainer()
    for number in range(1, MAX_SKIPPED):
        one.skip()
        assert (one.progress.step, one.progress.skipped_in_a_row, one.progress.broken) == (number, number, True)
    with pytest.raises(Diverged, match="3 times in a row"):
        one.skip()


def test_a_step_that_is_finite_forgets_those_that_were_skipped() -> None:
    one = trainer()
    one.skip()
    assert one.step(groups()) is not None
    assert one.progress == Progress(step=2, policy_version=1)


def test_weights_that_are_not_finite_update_nothing() -> None:
    one = trainer(minibatches=2)
    with torch.no_grad():
        next(one.weights())[1].fill_(torch.nan)
    assert one.step(groups()) is None
    assert one.progress == Progress(step=1, skipped_in_a_row=1, broken=True)


def test_updates_that_are_not_finite_end_a_run_with_their_micro_batches() -> None:
    wrong = [[replace(t, advantage=float("inf")) for t in group] for group in groups(3)]
    one = trainer(minibatches=3)
    with pytest.raises(Diverged, match="3 updates in a row") as end:
        one.step(wrong)
    assert len(end.value.minibatch) == 1
    assert one.version == 0


def test_a_state_continues_where_it_was_left() -> None:
    one, other = trainer(), trainer()
    one.step(groups())
    other.restore(one.state())
    assert other.progress == one.progress
