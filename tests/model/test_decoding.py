import torch

from steadyrl.model.decoding import ReservedLayer


def test_a_reserved_layer_is_appended_to_and_reordered() -> None:
    steps = [torch.randn(2, 1, n, 4, generator=torch.Generator().manual_seed(n)) for n in (3, 1, 2)]
    layer = ReservedLayer(length=6, fp8=False)
    layer.update(steps[0], -steps[0])
    keys, values = layer.update(steps[1], -steps[1])
    assert torch.equal(keys, torch.cat(steps[:2], dim=2))
    assert torch.equal(values, -keys)
    order = torch.tensor([1, 0, 1])
    layer.reorder_cache(order)
    keys, values = layer.update(steps[2][order], -steps[2][order])
    assert torch.equal(keys, torch.cat(steps, dim=2)[order])
    assert torch.equal(values, -keys)
