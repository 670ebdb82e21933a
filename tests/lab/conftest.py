"""A lab for each test that asks for one."""

from pathlib import Path

import pytest
from labs_for_tests import small_lab


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A lab of one figure whose runs take a second."""
    return small_lab(tmp_path)
