"""From rewards to advantages, by the switches of the recipe."""

import pytest
import torch

from builders import completion
from steadyrl.measure.step import rollout_metrics
from steadyrl.recipe.building import build
from steadyrl.recipe.variants import SECTIONS
from steadyrl.rollout import advantages as room
from steadyrl.rollout.groups import Group, Rewards
from steadyrl.tasks.base import Example
from steadyrl.training.trainer import denominators, minibatches

REWARDS = torch.tensor([[1.0, 0.0, 2.0], [4.0, 4.0, 4.0]])

Advantage = SECTIONS["advantage"]["group"]


def with_advantages(groups, rewards, *, normalise, options):
    advantage = build(options)
    return room.with_advantages(groups, rewards, advantage=advantage, normalise=normalise, options=options)


def rewards(values: torch.Tensor = REWARDS, known: torch.Tensor | None = None) -> Rewards:
    """Rewards of which some may be missing."""
    known = torch.ones_like(values, dtype=torch.bool) if known is None else known
    failures = tuple(None if there else "raised ValueError: no verdict" for there in known.flatten().tolist())
    return Rewards(values=values, known=known, parts={}, failures=failures)


def groups(*cut: tuple[int, int], count: int = 2, lengths: tuple[int, ...] = (1, 2, 3)) -> list[Group]:
    """Groups of responses of these lengths; those in `cut` reached the length limit."""
    ends = [["length" if (i, j) in cut else "stop" for j in range(len(lengths))] for i in range(count)]
    example = Example(question="?", answer="!", solution="!")
    completions = [
        tuple(completion(range(2, 2 + length), finish_reason=end) for length, end in zip(lengths, row, strict=True))
        for row in ends
    ]
    return [
        Group(index=i, example=example, prompt_text="", prompt_ids=(1,), completions=c)
        for i, c in enumerate(completions)
    ]


def divided_by(earned: Rewards, *, parts: int, lengths: tuple[int, ...] | None = None, **options: bool) -> list[tuple]:
    """What each mini-batch is divided by: responses, groups, tokens."""
    count, samples = earned.values.shape
    asked = groups(count=count, lengths=lengths or tuple(range(1, samples + 1)))
    found = with_advantages(asked, earned, normalise=False, options=Advantage(**options))
    return [tuple(denominators(part).values()) for part in minibatches(found, parts)]


def advantages(*cut: tuple[int, int], normalise: bool = False, **options: bool) -> list[list[float]]:
    found = with_advantages(groups(*cut), rewards(), normalise=normalise, options=Advantage(**options))
    return [[r.advantage for r in group] for group in found]


def test_the_baseline_is_the_mean_of_the_group_or_of_the_others() -> None:
    assert advantages() == [[0.0, -1.0, 1.0], [0.0, 0.0, 0.0]]
    # 1 − (0+2)/2, 0 − (1+2)/2, 2 − (1+0)/2
    assert advantages(leave_one_out=True) == [[0.0, -1.5, 1.5], [0.0, 0.0, 0.0]]


def test_division_by_the_deviation() -> None:
    deviation = (2 / 3) ** 0.5  # of 1, 0, 2
    assert advantages(normalise=True)[0] == pytest.approx([0.0, -1 / deviation, 1 / deviation])


def test_overlong_responses_lose_their_advantage_but_count_in_the_baseline() -> None:
    assert advantages((0, 1), filter_overlong=True) == [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    assert advantages((0, 1)) == [[0.0, -1.0, 1.0], [0.0, 0.0, 0.0]]


def test_their_tokens_stay_in_the_denominator() -> None:
    found = with_advantages(groups((0, 2)), rewards(), normalise=False, options=Advantage(filter_overlong=True))
    assert [r.group_tokens for r in found[0]] == [1 + 2 + 3] * 3


def test_each_mini_batch_counts_its_own_groups() -> None:
    earned = rewards(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [2.0, 2.0]]))  # lengths 1 and 2
    assert divided_by(earned, parts=2) == [(4, 2, 6)] * 2
    assert divided_by(earned, parts=2, filter_groups=True) == [(2, 1, 3), (0, 0, 0)]
    assert divided_by(earned, parts=1, filter_groups=True) == [(2, 1, 3)]


def test_a_missing_reward_counts_in_no_denominator() -> None:
    values = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    known = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]]).bool()
    some = rewards(values, known)  # lengths 1, 2 and 3
    assert divided_by(some, parts=2) == [(3, 2, 3 + 1), (3, 1, 6)]
    assert divided_by(some, parts=2, filter_groups=True) == [(2, 1, 3), (3, 1, 6)]


def test_the_tokens_of_a_response_without_a_reward_are_not_in_its_groups_sum() -> None:
    known = torch.tensor([[True, False, True], [False, False, False]])
    found = with_advantages(groups(), rewards(REWARDS, known), normalise=False, options=Advantage())
    assert [r.group_tokens for r in found[0]] == [1 + 3] * 3
    assert [r.advantage for r in found[0]] == [-0.5, 0.0, 0.5]
    assert [r.advantage for r in found[1]] == [0.0] * 3
    assert all(r.group_tokens > 0 for r in found[1])


def test_each_mini_batch_counts_the_tokens_of_its_own_groups() -> None:
    assert divided_by(rewards(), parts=2) == [(3, 1, 6), (3, 1, 6)]
    assert divided_by(rewards(), parts=2, filter_groups=True) == [(3, 1, 6), (0, 0, 0)]  # the second group is uniform
    assert divided_by(rewards(), parts=1, filter_groups=True) == [(3, 1, 6)]
    some = rewards(known=torch.tensor([[True, False, True], [False, False, False]]))
    assert divided_by(some, parts=2) == [(2, 1, 1 + 3), (0, 0, 0)]


def test_epsilon_softens_the_division_by_the_deviation() -> None:
    deviation = (2 / 3) ** 0.5 + 0.5  # of 1, 0, 2
    found = with_advantages(groups(), rewards(), normalise=True, options=Advantage(epsilon=0.5))
    assert [r.advantage for r in found[0]] == pytest.approx([0.0, -1 / deviation, 1 / deviation])


def test_groups_equal_but_for_rounding_are_counted_as_uniform() -> None:
    nearly = torch.tensor([[1.0, 0.0, 2.0], [0.3, 0.3, 0.3]])
    nearly[1, 1] = torch.nextafter(nearly[1, 1], torch.tensor(1.0))
    assert rollout_metrics(groups(), rewards(nearly), correct_at=1.0)["reward/uniform_groups"] == 0.5


@pytest.mark.parametrize("options", [Advantage(), Advantage(leave_one_out=True), Advantage(epsilon=2.0)])
def test_what_a_response_earned_beyond_the_others_does_not_depend_on_the_advantage(options: Advantage) -> None:
    found = with_advantages(groups(), rewards(), normalise=not options.leave_one_out, options=options)
    assert [[r.excess for r in group] for group in found] == [[0.0, -1.5, 1.5], [0.0, 0.0, 0.0]]
    some = rewards(known=torch.tensor([[True, False, True], [True, True, True]]))
    found = with_advantages(groups(), some, normalise=False, options=options)
    assert [r.excess for r in found[0]] == [-1.0, 0.0, 1.0]  # 1 and 2 have a reward
