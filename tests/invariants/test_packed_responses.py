"""However responses are packed, each token knows its own, and every objective comes out the same."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import random_ids, response
from steadyrl import algo
from steadyrl.algo import Objective
from steadyrl.model.packing import pack
from steadyrl.types import MicroBatch

EXPORTED = [getattr(algo, name) for name in algo.__all__]
MEMBERS = [kind() for kind in EXPORTED if isinstance(kind, type) and Objective in kind.__mro__[1:]]
lengths_of_responses = st.lists(st.integers(1, 10), min_size=1, max_size=7)


def packed(lengths: list[int], micro_tokens: int, *, one_block: bool) -> list[MicroBatch]:
    responses = [
        response(
            random_ids(4, seed=i),
            random_ids(length, seed=100 + i),
            advantage=(-1.0) ** i * (1 + i),  # its size names the response
            logprobs=-torch.arange(1, length + 1) / 10.0,
            group_tokens=sum(lengths),
        )
        for i, length in enumerate(lengths)
    ]
    return pack(responses, micro_tokens=micro_tokens, one_block=one_block)


@settings(deadline=None, max_examples=30)
@given(lengths=lengths_of_responses, micro_tokens=st.integers(14, 64), one_block=st.booleans())
def test_the_tokens_of_a_response_are_numbered_alike_and_in_order(lengths, micro_tokens, one_block) -> None:
    for micro in packed(lengths, micro_tokens, one_block=one_block):
        numbers, counts = micro.response.unique_consecutive(return_counts=True)
        assert numbers.tolist() == list(range(len(numbers)))
        assert counts.repeat_interleave(counts).tolist() == micro.response_tokens.tolist()
        for number in numbers:
            assert micro.advantages[micro.response == number].unique().numel() == 1


def totals(objective: Objective, micros: list[MicroBatch], responses: int) -> dict[float, float]:
    """The summand of each response, by its advantage."""
    found: dict[float, float] = {}
    for micro in micros:
        tokens = micro.tokens(micro.rollout_logprobs + 0.01)
        logprobs = micro.rollout_logprobs - 0.02 * micro.response_tokens.sqrt()
        terms = objective(logprobs, tokens, responses=responses, groups=1)
        for advantage, term in zip(micro.advantages.tolist(), terms.surrogate.tolist(), strict=True):
            found[advantage] = found.get(advantage, 0.0) + term
    return found


@settings(deadline=None, max_examples=20)
@given(lengths=lengths_of_responses, micro_tokens=st.integers(14, 64), one_block=st.booleans())
def test_the_packing_changes_no_objective(lengths, micro_tokens, one_block) -> None:
    """Neither the blocks with their padding, nor the order, nor the cut into micro-batches."""
    micros, whole = packed(lengths, micro_tokens, one_block=one_block), packed(lengths, 10**6, one_block=False)
    assert len(whole) == 1
    for objective in MEMBERS:
        expected = totals(objective, whole, len(lengths))
        assert len(expected) == len(lengths)
        assert totals(objective, micros, len(lengths)) == pytest.approx(expected, rel=1e-5, abs=1e-7)
