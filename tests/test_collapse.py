"""What a collapse is."""

from steadyrl.collapse import collapse_step


def test_a_collapse_begins_where_the_reward_leaves_for_good() -> None:
    up, dip, down = [0.3, 0.6, 0.9], [0.1], [0.5, 0.3, 0.2]
    # N = 8: the window of 8 updates is one step; 2/3 of the best, .9, is .6
    assert collapse_step(up + dip + [0.9] + down, minibatches=8) == 5  # the dip was not the collapse
    assert collapse_step(up + dip + [0.9], minibatches=8) is None
    assert collapse_step([0.9] * 22 + [0.1] * 2, minibatches=8) == 22  # 1/12 of the run is enough
    assert collapse_step([0.9] * 46 + [0.1] * 2, minibatches=8) is None  # 1/24 is not
    assert collapse_step([0.9] * 10 + [0.1] * 2, minibatches=8) == 10
    assert collapse_step([0.9] * 11 + [0.1] * 1, minibatches=8) is None  # a fall in the last step stays nowhere
    assert collapse_step([0.9, 0.61, 0.61], minibatches=8) is None  # above 2/3
    assert collapse_step([0.0, 0.0], minibatches=8) is None  # nothing to lose


def test_the_window_of_a_collapse_counts_updates() -> None:
    rewards = [0.9] * 20 + [0.0] * 4
    assert collapse_step(rewards, minibatches=8) == 20
    assert (
        collapse_step(rewards, minibatches=2) == 21
    )  # over 4 steps: (3 · .9)/4 = .675 stays above .6, 2 · .9/4 does not


def test_a_run_of_fines_alone_has_nothing_to_lose() -> None:
    assert collapse_step([-1.0] * 6, minibatches=8) is None
