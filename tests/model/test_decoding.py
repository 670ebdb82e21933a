import pytest
import torch
from torch import nn

from steadyrl.model.decoding import ReservedLayer, _single_query


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_a_single_query(masked: bool, scaling: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, heads, n, 8, generator=generator) for heads, n in ((6, 1), (2, 5), (2, 5)))
    mask = torch.arange(5) >= torch.tensor([0, 2, 4])[:, None, None, None] if masked else None
    ours, _ = _single_query(nn.Module(), query, key, value, mask, scaling)
    shared = (x.repeat_interleave(3, dim=1) for x in (key, value))  # six heads of queries to two of keys
    expected = nn.functional.scaled_dot_product_attention(query, *shared, attn_mask=mask, scale=scaling)
    torch.testing.assert_close(ours, expected.transpose(1, 2))


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
