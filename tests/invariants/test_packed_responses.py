"""However responses are packed, each token knows its own, and an objective of whole responses comes out the same."""

import pytest
import torch

from builders import random_ids, response
from steadyrl.algo import GSPO, VESPO, MinPRO, Objective, PrefixIS
from steadyrl.model.packing import pack_responses
from steadyrl.types import MicroBatch

LENGTHS = (5, 1, 9, 3, 7, 2)


def packed(micro_tokens: int, *, one_block: bool) -> list[MicroBatch]:
    responses = [
        response(
            random_ids(4, seed=i),
            random_ids(length, seed=100 + i),
            advantage=(-1.0) ** i * (1 + i),  # its size names the response
            logprobs=-torch.arange(1, length + 1) / 10.0,
            group_tokens=sum(LENGTHS),
        )
        for i, length in enumerate(LENGTHS)
    ]
    return pack_responses(responses, micro_tokens=micro_tokens, one_block=one_block, device=torch.device("cpu"))


@pytest.mark.parametrize("micro_tokens", [12, 20, 64])
@pytest.mark.parametrize("one_block", [True, False])
def test_the_tokens_of_a_response_are_numbered_alike_and_in_order(micro_tokens: int, one_block: bool) -> None:
    for micro in packed(micro_tokens, one_block=one_block):
        numbers, counts = micro.response.unique_consecutive(return_counts=True)
        assert numbers.tolist() == list(range(len(numbers)))
        assert counts.repeat_interleave(counts).tolist() == micro.response_tokens.tolist()
        for number in numbers:
            assert micro.advantages[micro.response == number].unique().numel() == 1


@pytest.mark.parametrize("objective", [GSPO(clip_low=0.5, clip_high=0.5), VESPO(), PrefixIS(), MinPRO()])
def test_the_packing_changes_no_objective_of_whole_responses(objective: Objective) -> None:
    def totals(micro_tokens: int, *, one_block: bool) -> dict[float, float]:
        found: dict[float, float] = {}
        for micro in packed(micro_tokens, one_block=one_block):
            tokens = micro.tokens(micro.rollout_logprobs + 0.01)
            logprobs = micro.rollout_logprobs - 0.02 * micro.response_tokens.sqrt()
            terms = objective(logprobs, tokens, responses=len(LENGTHS), groups=1)
            for advantage, term in zip(micro.advantages.tolist(), terms.surrogate.tolist(), strict=True):
                found[advantage] = found.get(advantage, 0.0) + term
        return found

    whole = totals(64, one_block=False)
    assert len(whole) == len(LENGTHS)
    for micro_tokens, one_block in ((12, True), (20, False), (64, True)):
        assert totals(micro_tokens, one_block=one_block) == pytest.approx(whole, rel=1e-5)
