import pytest
import torch

from steadyrl.algo import group_advantage, informative, leave_one_out, without_truncated


def test_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [3.0, 1.0, 3.0, 1.0]])
    # means ¼ and 2
    centred = torch.tensor([[0.75, -0.25, -0.25, -0.25], [1.0, -1.0, 1.0, -1.0]])
    torch.testing.assert_close(group_advantage(rewards, normalise=False), centred)
    # population variances (¾² + 3·¼²)/4 = 3/16 and 1
    divided = centred / torch.tensor([[3**0.5 / 4], [1.0]])
    torch.testing.assert_close(group_advantage(rewards, normalise=True), divided)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 0.05, 1 / 3])  # the mean of equal floats is not always their value
@pytest.mark.parametrize("responses", [1, 7, 16, 32])
def test_equal_rewards_have_no_advantage(reward: float, responses: int, normalise: bool) -> None:
    assert not group_advantage(torch.full((1, responses), reward), normalise=normalise).any()


def test_groups_do_not_see_each_other() -> None:
    rewards = torch.rand(5, 8, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([group_advantage(row[None], normalise=True) for row in rewards])
    torch.testing.assert_close(group_advantage(rewards, normalise=True), alone)
    torch.testing.assert_close(alone.mean(dim=1), torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(alone.std(dim=1, correction=0), torch.ones(5))


def test_a_broken_reward_is_not_hidden() -> None:
    assert group_advantage(torch.tensor([[1.0, float("nan")]]), normalise=False).isnan().all()


def test_leave_one_out_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0, 2.0], [4.0, 4.0, 4.0]])
    # 1 − (0+2)/2, 0 − (1+2)/2, 2 − (1+0)/2
    torch.testing.assert_close(leave_one_out(rewards), torch.tensor([[0.0, -1.5, 1.5], [0.0, 0.0, 0.0]]))


def test_a_group_of_one() -> None:
    alone = torch.tensor([[3.0], [0.0]])
    assert group_advantage(alone, normalise=False).tolist() == [[0.0], [0.0]]
    assert group_advantage(alone, normalise=True).tolist() == [[0.0], [0.0]]
    with pytest.raises(ValueError, match="at least 2 responses, found 1"):
        leave_one_out(alone)


NEXT = torch.nextafter(torch.tensor(0.35), torch.tensor(1.0)).item()


@pytest.mark.parametrize(
    "rewards",
    [
        [0.35] * 7 + [NEXT],
        [0.1 + 0.2, 0.3, 0.3],
        [-0.7, -0.7 - 6e-8],
        [1e6, 1e6 + 0.5],  # 7.6 roundings apart
        [1e-30, 1.0000001e-30],
        [0.0, -0.0],
    ],
)
def test_rewards_that_differ_by_rounding_are_equal(rewards: list[float]) -> None:
    group = torch.tensor([rewards])
    for normalise in (False, True):
        assert group_advantage(group, normalise=normalise).tolist() == [[0.0] * len(rewards)]
    assert leave_one_out(group).tolist() == [[0.0] * len(rewards)]
    assert informative(group).tolist() == [False]


@pytest.mark.parametrize("rewards", [[1.0, 1.0 - 9 * 2**-23], [0.0, 1e-30], [-1e-7, 1e-7], [0.35, 0.3501]])
def test_rewards_that_differ_by_more_are_not(rewards: list[float]) -> None:
    assert informative(torch.tensor([rewards])).tolist() == [True]
    assert group_advantage(torch.tensor([rewards]), normalise=True).sign().abs().tolist() == [[1.0, 1.0]]


def test_at_exactly_eight_roundings_a_group_is_informative() -> None:
    assert informative(torch.tensor([[1.0, 1.0 - 8 * 2**-23], [1.0, 1.0 - 7 * 2**-23]])).tolist() == [True, False]


def test_epsilon_is_added_to_the_deviation() -> None:
    rewards = torch.tensor([[3.0, 1.0]])  # deviation 1
    torch.testing.assert_close(group_advantage(rewards, normalise=True, epsilon=0.25), torch.tensor([[0.8, -0.8]]))
    assert torch.equal(group_advantage(rewards, normalise=False, epsilon=0.25), torch.tensor([[1.0, -1.0]]))


def test_filters() -> None:
    rewards = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    assert informative(rewards).tolist() == [False, True, False]
    cut = torch.tensor([[False, True], [True, False], [False, False]])
    assert without_truncated(rewards, cut).tolist() == [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]


def test_a_missing_reward_takes_no_part_in_its_group() -> None:
    rewards = torch.tensor([[9.0, -1.0, -1.0, -1.0], [9.0, 1.0, 2.0, 3.0]])
    known = torch.tensor([[False, True, True, True]] * 2)
    assert group_advantage(rewards, normalise=False, known=known).tolist() == [[0.0] * 4, [0.0, -1.0, 0.0, 1.0]]
    deviation = (2 / 3) ** 0.5  # of 1, 2, 3
    expected = [0.0, -1 / deviation, 0.0, 1 / deviation]
    assert group_advantage(rewards, normalise=True, known=known)[1].tolist() == pytest.approx(expected)
    assert leave_one_out(rewards, known=known)[1].tolist() == [0.0, -1.5, 0.0, 1.5]
    assert informative(rewards, known=known).tolist() == [False, True]


@pytest.mark.parametrize("count", [0, 1])
def test_a_group_with_fewer_than_two_rewards_moves_nothing(count: int) -> None:
    rewards, known = torch.tensor([[1.0, 0.0, 3.0]]), torch.tensor([[n < count for n in range(3)]])
    for found in (
        group_advantage(rewards, normalise=False, known=known),
        group_advantage(rewards, normalise=True, known=known),
        leave_one_out(rewards, known=known),
    ):
        assert found.tolist() == [[0.0, 0.0, 0.0]]
    assert informative(rewards, known=known).tolist() == [False]


def test_missing_rewards_change_no_bit_of_groups_that_have_all() -> None:
    rewards = torch.rand(64, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(group_advantage(rewards, normalise=False), rewards - rewards.mean(dim=1, keepdim=True))
