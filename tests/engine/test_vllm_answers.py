"""What vLLM returned becomes a record, or an error. None of this imports vLLM."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from builders import dense_policy, tiny_policy
from steadyrl.engine.base import EngineError
from steadyrl.engine.vllm.answers import Experts, experts_of, read_routes

EXPERTS = Experts(layers=(0, 2), slots=2, experts=4)
GOOD = np.array([[[0, 1], [9, 9], [2, 3]], [[1, 0], [9, 9], [3, 1]], [[3, 2], [9, 9], [0, 2]]], dtype=np.uint8)
"""Three positions of a model whose middle layer is dense: what stands there means nothing."""


def test_what_is_read_of_a_model() -> None:
    assert experts_of(dense_policy().model) is None
    policy = tiny_policy(num_hidden_layers=3, mlp_only_layers=[1], num_experts=4, num_experts_per_tok=2)
    assert experts_of(policy.model) == EXPERTS


def test_the_layers_that_choose() -> None:
    assert read_routes(GOOD, EXPERTS, rows=3).tolist() == [[[0, 1], [2, 3]], [[1, 0], [3, 1]], [[3, 2], [0, 2]]]


@pytest.mark.parametrize(("experts", "dtype"), [(255, torch.uint8), (256, torch.uint16)])
@pytest.mark.parametrize("given", [np.uint8, np.uint16, np.int32])
def test_a_type_with_room_for_the_sentinel(experts: int, dtype: torch.dtype, given: type) -> None:
    found = GOOD.astype(given)
    found[0, 0, 0] = experts - 1  # vLLM packs 256 experts into a byte, and leaves none free
    routes = read_routes(found, replace(EXPERTS, experts=experts), rows=3)
    assert routes.dtype == dtype
    assert routes.int()[0, 0, 0] == experts - 1


def test_slots_that_the_model_does_not_name() -> None:
    assert read_routes(GOOD, replace(EXPERTS, slots=None), rows=3).shape == (3, 2, 2)


def planted(value: int) -> np.ndarray:
    found = GOOD.astype(np.int32)
    found[1, 2, 0] = value
    return found


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "returned no routes for a sequence of 4 tokens"),
        (GOOD[:2], r"\(2, 3, 2\); a sequence of 4 tokens needs \(3, 3, 2\)"),
        (np.concatenate([GOOD, GOOD[:1]]), "needs"),
        (GOOD[:, :2], "needs"),
        (GOOD[:, :, :1], "needs"),
        (GOOD[:, 0], "needs"),
        (planted(4), "expert ids from 0 to 4; a layer has 4 experts"),
        (planted(256), "expert ids from 0 to 256; a layer has 4 experts"),
        (planted(-1), "expert ids from -1 to 3; a layer has 4 experts"),
        (np.zeros_like(GOOD), "zeros alone"),
    ],
)
def test_anything_else_is_an_error(found: np.ndarray | None, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        read_routes(found, EXPERTS, rows=3)
