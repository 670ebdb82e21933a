"""Shape annotations are checked here and nowhere else: the hook must stand before steadyrl is imported."""

from collections.abc import Iterator

import jaxtyping
import pytest

_annotated = ("types", "algo", "routing", "model", "engine", "conformance", "training", "measure")
_checked = jaxtyping.install_import_hook([f"steadyrl.{name}" for name in _annotated], "typecheck.checked")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests remember audits in a folder of their own, not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEADYRL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
