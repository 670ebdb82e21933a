"""Mistakes that were made in replay elsewhere, planted here one by one: the suite must see each of them."""

import pytest
import torch
from torch import Tensor

from steadyrl.conformance.checks import CHECKS
from steadyrl.conformance.report import listed_subject, outcome_of
from steadyrl.routing import hooks
from steadyrl.routing.hooks import CHOICES, _Choice


class ShiftedByOneToken(_Choice):
    def __init__(self, *args):
        super().__init__(*args)
        self.choice = None if self.choice is None else self.choice.roll(1, dims=0)


class GatheredAfterTheZeroing(_Choice):
    """Gate weights from scores in which all but the live choice are 0 already."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = super().__torch_function__(func, types, args, kwargs)
        if func not in CHOICES or self.choice is None or not self.native or isinstance(out, Tensor):
            return out
        scores, (_, indices) = args[0], out
        if scores.shape[-1] != self.experts:
            return out
        kept = torch.zeros_like(scores).scatter(-1, self.native[-1], 1.0)
        return type(out)(((scores * kept).gather(-1, indices), indices))


class FirstTopKInsteadOfTheLast(_Choice):
    """Of the several choices of a router limited to groups, the groups are replaced and the experts are not."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = super().__torch_function__(func, types, args, kwargs)
        if func not in CHOICES or self.choice is None or isinstance(out, Tensor) or args[0].ndim != 2:
            return out
        if args[0].shape[-1] == self.experts:
            native = func(*args, **(kwargs or {}))
            return type(out)((native[0], native[1]))
        return type(out)((out[0], self.choice[:, : out[1].shape[-1]].long() % args[0].shape[-1]))


def with_layers_swapped(model, blocks, routes, **options):
    return ORIGINAL(model, blocks, None if routes is None else routes.flip(1), **options)


ORIGINAL = hooks._intercepted
MUTANTS = {
    "shifted by one token": ("_Choice", ShiftedByOneToken, "qwen3_moe"),
    "gathered after the zeroing": ("_Choice", GatheredAfterTheZeroing, "qwen3_moe"),
    "first top-k instead of the last": ("_Choice", FirstTopKInsteadOfTheLast, "deepseek_v3"),
    "two layers swapped": ("_intercepted", with_layers_swapped, "qwen3_moe"),
}


def broken(family: str) -> set[str]:
    return {check for check in CHECKS if outcome_of(check, listed_subject(family)).found == "broken"}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_planted_mistake_is_seen_by_three_checks(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, mistake, family = MUTANTS[mutant]
    assert broken(family) == set()
    monkeypatch.setattr(hooks, place, mistake)
    found = broken(family)
    assert len(found) >= 3, found
    if mutant == "shifted by one token":
        assert found >= {"own routes", "foreign routes", "padded", "packed"}
    if mutant == "gathered after the zeroing":
        assert found >= {"gate weights", "router gradient"}
