"""Shape annotations are checked here and nowhere else: the hook must stand before steadyrl is imported."""

import jaxtyping

_checked = jaxtyping.install_import_hook(
    ["steadyrl.types", "steadyrl.algo", "steadyrl.model", "steadyrl.engine", "steadyrl.conformance"],
    "typecheck.checked",
)
