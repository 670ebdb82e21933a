import pytest
import torch

from steadyrl.model.repeatable import repeatable


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def gradient() -> torch.Tensor:
    """Sixteen thousand rows gathered from eight hundred: what indexing adds up in the backward has no order."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(800, 128, generator=generator, requires_grad=True)
    chosen = torch.randint(800, (16_000,), generator=generator)
    (rows[chosen] * torch.randn(16_000, 128, generator=generator)).sum().backward()
    assert rows.grad is not None
    return rows.grad


def test_the_same_bits_on_two_threads(two_threads) -> None:
    with repeatable(torch.device("cpu")):
        first = gradient()
        assert all(torch.equal(first, gradient()) for _ in range(8))


def test_the_setting_is_given_back() -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    with repeatable(torch.device("cpu")):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    with repeatable(torch.device("cuda")):
        assert not torch.are_deterministic_algorithms_enabled()
