import torch

from steadyrl.algo import decoupled_clip, unclipped


def test_each_side_by_hand() -> None:
    # ε_low = .2, ε_high = .27: Â > 0 is masked above 1.27, Â < 0 below .8; the other two corners bring r back to 1
    ratio = torch.tensor([1.26, 1.28, 0.81, 0.79, 0.10, 9.00])
    sides = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, -1.0])
    clipped = decoupled_clip(ratio.log(), sides, low=0.2, high=0.27)
    assert clipped.high.tolist() == [False, True, False, False, False, False]
    assert clipped.low.tolist() == [False, False, False, True, False, False]
    assert clipped.kept.tolist() == [True, False, True, False, True, True]


def test_the_boundary_is_kept() -> None:
    # 1.25 and .75 are exact in binary, and so is exp(log) of both here
    boundary = torch.tensor([1.25, 0.75]).log()
    assert boundary.exp().tolist() == [1.25, 0.75]
    sides = torch.tensor([1.0, -1.0])
    assert decoupled_clip(boundary, sides, low=0.25, high=0.25).kept.all()
    outside = boundary + 1e-6 * sides
    assert not decoupled_clip(outside, sides, low=0.25, high=0.25).kept.any()


def test_no_advantage_is_never_masked() -> None:
    ratio = torch.tensor([1e-9, 0.5, 1.0, 2.0, 1e9])
    assert decoupled_clip(ratio.log(), torch.zeros(5), low=0.2, high=0.27).kept.all()


def test_unclipped_keeps_everything() -> None:
    assert unclipped(torch.tensor([-1.0, 0.0, 1.0])).kept.tolist() == [True, True, True]
