"""Shape annotations are checked here and nowhere else: the hook must stand before steadyrl is imported."""

import jaxtyping

_annotated = ("types", "algo", "model", "engine", "conformance", "update")
_checked = jaxtyping.install_import_hook([f"steadyrl.{name}" for name in _annotated], "typecheck.checked")
