import pytest
import torch
from torch import nn

from steadyrl.model.attention import _single_query


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_a_single_query(masked: bool, scaling: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, heads, n, 8, generator=generator) for heads, n in ((6, 1), (2, 5), (2, 5)))
    mask = torch.arange(5) >= torch.tensor([0, 2, 4])[:, None, None, None] if masked else None
    ours = _single_query(query, key, value, mask, scaling)
    shared = (x.repeat_interleave(3, dim=1) for x in (key, value))  # six heads of queries to two of keys
    expected = nn.functional.scaled_dot_product_attention(query, *shared, attn_mask=mask, scale=scaling)
    torch.testing.assert_close(ours, expected.transpose(1, 2))
