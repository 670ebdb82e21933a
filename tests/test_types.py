"""The records say what is wrong with them, and the padded tensors of other frameworks give the same tokens."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import completion, given_span, response, sampled_span, two_turns
from steadyrl import algo
from steadyrl.algo import Objective, Tokens
from steadyrl.errors import UserError
from steadyrl.model.packing import pack
from steadyrl.types import MicroBatch, Trajectory

EXPORTED = [getattr(algo, name) for name in algo.__all__]
OBJECTIVES = [kind() for kind in EXPORTED if isinstance(kind, type) and Objective in kind.__mro__[1:]]


def test_a_trajectory_counts_its_tokens() -> None:
    one = two_turns()  # p0 p1 | a0 a1 | t0 | b0
    assert one.token_ids == (3, 4, 5, 6, 7, 8)
    assert (one.fed, one.sampled_tokens) == (5, 3)
    assert [span.token_ids for span in one.sampled] == [(5, 6), (8,)]


def test_a_single_turn_is_a_given_and_a_sampled_span() -> None:
    said = completion((6, 7), routes=torch.zeros(4, 2, 2, dtype=torch.uint8), policy_version=3, finish_reason="stop")
    one = Trajectory.single([3, 4, 5], said, advantage=0.5, group_tokens=9, excess=0.25, counted=False)
    assert one.spans == (given_span(3, 4, 5), said)
    assert one.routes is said.routes
    assert (one.advantage, one.group_tokens, one.excess, one.counted) == (0.5, 9, 0.25, False)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ((), r"spans = \(\): the first must be Given and the last Sampled"),
        ((sampled_span(3),), r"spans = \(Sampled\): the first must be Given"),
        (
            (given_span(3), sampled_span(4), given_span(5)),
            r"spans = \(Given, Sampled, Given\): the first must be Given and the last Sampled",
        ),
        ((given_span(3), given_span(), sampled_span(4)), r"spans\[1\] has no tokens; leave it out"),
        (
            (given_span(3), replace(sampled_span(4, 5), logprobs=torch.zeros(3))),
            r"spans\[1\] has 3 log-probs for 2 sampled tokens",
        ),
    ],
)
def test_spans_that_cannot_be_trained_on_are_rejected(spans, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Trajectory(spans=spans, routes=None, advantage=1.0, group_tokens=2)


@pytest.mark.parametrize("rows", [3, 5])
def test_routes_that_do_not_fit_their_tokens_are_rejected(rows: int) -> None:
    with pytest.raises(UserError, match=rf"routes has {rows} rows for 4 fed positions"):
        response((3, 4, 5), (6, 7), routes=torch.zeros(rows, 2, 2, dtype=torch.uint8))


# ---- the padded tensors of other frameworks


def padded(masks: list[list[bool]], *, prompts: int) -> tuple[dict[str, torch.Tensor], list[Trajectory]]:
    """Rows of sampled tokens with tool outputs and padding between them, and the same as trajectories."""
    mask = torch.tensor(masks)
    generator = torch.Generator().manual_seed(mask.numel())
    rollout, old = (-3 * torch.rand(mask.shape, generator=generator) for _ in range(2))
    advantages = torch.linspace(-1.1, 1.6, len(mask))  # none is 0: nothing is packed apart
    group = torch.arange(len(mask)) % prompts
    sizes = torch.zeros(prompts, dtype=torch.long).scatter_add(0, group, mask.sum(dim=1))[group]
    trajectories = []
    for row, logprobs in enumerate(rollout):
        spans = [given_span(100 + row)]
        for column, inside in enumerate(masks[row]):
            spans.append(replace(sampled_span(3), logprobs=logprobs[column : column + 1]) if inside else given_span(4))
        while spans[-1] == given_span(4):
            spans.pop()
        trajectories.append(
            Trajectory(spans=tuple(spans), routes=None, advantage=advantages[row].item(), group_tokens=int(sizes[row]))
        )
    named = {"rollout_logprobs": rollout, "old_logprobs": old, "advantages": advantages, "mask": mask}
    return {**named, "group_tokens": sizes}, trajectories


rows_of = st.integers(1, 7).flatmap(
    lambda width: st.lists(st.lists(st.booleans(), min_size=width, max_size=width).filter(any), min_size=1, max_size=6)
)


def by_row(values: torch.Tensor, micro: MicroBatch) -> list[torch.Tensor]:
    """The values of each trajectory, which its advantage names."""
    return [values[micro.advantages == advantage] for advantage in micro.advantages.unique()]  # sorted


@settings(deadline=None, max_examples=20)
@given(masks=rows_of, prompts=st.integers(1, 3), tokens_have_one=st.booleans())
def test_padded_tensors_are_the_packed_tokens_for_every_objective(masks, prompts, tokens_have_one) -> None:
    tensors, trajectories = padded(masks, prompts=prompts)
    (micro,) = pack(trajectories, micro_tokens=10**6, one_block=False)
    mask, given_tensors = tensors["mask"], dict(tensors)
    if tokens_have_one:
        given_tensors["advantages"] = tensors["advantages"][:, None].expand(mask.shape)
        given_tensors["mask"] = mask.long()
    flat = Tokens.from_padded(**given_tensors)
    theta = (tensors["old_logprobs"] + 0.3).clamp(max=0.0)
    order = torch.cat([(micro.advantages == a).nonzero().flatten() for a in tensors["advantages"]])
    inverse = order.argsort()
    expected = micro.tokens(tensors["old_logprobs"][mask][inverse])
    for objective in OBJECTIVES:
        gradients = []
        for tokens, logprobs in ((flat, theta[mask]), (expected, theta[mask][inverse])):
            leaf = logprobs.clone().requires_grad_()
            terms = objective(leaf, tokens, responses=len(mask), groups=prompts, batch_tokens=int(mask.sum()))
            gradients.append(torch.autograd.grad(terms.surrogate.sum(), leaf)[0])
        torch.testing.assert_close(gradients[0], gradients[1][order], atol=1e-6, rtol=1e-5, equal_nan=True)


def test_padded_tensors_by_hand() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0]])
    tokens = Tokens.from_padded(
        rollout_logprobs=logprobs,
        old_logprobs=2 * logprobs,
        advantages=torch.tensor([0.5, -1.0]),
        mask=torch.tensor([[1, 0, 1], [1, 0, 0]]),
        group_tokens=torch.tensor([3, 3]),
    )
    assert tokens.rollout_logprobs.tolist() == [-1.0, -3.0, -4.0]
    assert tokens.old_logprobs.tolist() == [-2.0, -6.0, -8.0]
    assert tokens.advantages.tolist() == [0.5, 0.5, -1.0]
    assert tokens.response_tokens.tolist() == [2.0, 2.0, 1.0]
    assert tokens.group_tokens.tolist() == [3.0, 3.0, 3.0]
    assert tokens.response.tolist() == [0, 0, 1]


@pytest.mark.parametrize("field", ["rollout_logprobs", "old_logprobs", "advantages", "group_tokens"])
def test_padded_tensors_of_another_shape_are_rejected(field: str) -> None:
    tensors, _ = padded([[True, True], [True, False]], prompts=1)
    tensors[field] = torch.ones(3) if field in ("advantages", "group_tokens") else torch.ones(2, 3)
    with pytest.raises((ValueError, TypeError), match=field):
        Tokens.from_padded(**tensors)
