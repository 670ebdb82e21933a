"""Routes that an engine returns wrongly never get past here."""

import numpy as np
import pytest
import torch

from steadyrl.engine.base import EngineError
from steadyrl.engine.returned import checked_routes

ASKED = {"rows": 3, "layers": [0, 2], "slots": 2, "experts": 4}
GOOD = np.array([[[0, 1], [9, 9], [2, 3]], [[1, 0], [9, 9], [3, 1]], [[3, 2], [9, 9], [0, 2]]], dtype=np.uint8)
"""Three positions of a model whose middle layer is dense: what stands there means nothing."""


def test_the_layers_that_choose() -> None:
    assert checked_routes(GOOD, **ASKED).tolist() == [[[0, 1], [2, 3]], [[1, 0], [3, 1]], [[3, 2], [0, 2]]]


@pytest.mark.parametrize(("experts", "dtype"), [(255, torch.uint8), (256, torch.uint16)])
def test_a_type_with_room_for_the_sentinel(experts: int, dtype: torch.dtype) -> None:
    found = GOOD.copy()
    found[0, 0, 0] = experts - 1  # vLLM packs 256 experts into a byte, and leaves none free
    routes = checked_routes(found, **{**ASKED, "experts": experts})
    assert routes.dtype == dtype
    assert routes.int()[0, 0, 0] == experts - 1


def test_slots_that_the_model_does_not_name() -> None:
    assert checked_routes(GOOD, **{**ASKED, "slots": None}).shape == (3, 2, 2)


def planted(**places: int) -> np.ndarray:
    found = GOOD.copy()
    found[1, 2] = [places["first"], places["second"]]
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
        (planted(first=4, second=1), "expert ids from 0 to 4; a layer has 4 experts"),
        (planted(first=3, second=3), r"\[3, 3\] as the experts of position 1, layer 2"),
        (planted(first=0, second=0), r"\[0, 0\] as the experts of position 1, layer 2: one of them twice"),
        (np.zeros_like(GOOD), "one of them twice"),
    ],
)
def test_anything_else_is_an_error(found: np.ndarray | None, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        checked_routes(found, **ASKED)


def test_zeros_of_a_model_that_chooses_one_expert() -> None:
    one = {**ASKED, "slots": 1}
    with pytest.raises(EngineError, match="zeros alone"):
        checked_routes(np.zeros((3, 3, 1), dtype=np.uint8), **one)
    assert checked_routes(GOOD[:, :, :1], **one).shape == (3, 2, 1)
