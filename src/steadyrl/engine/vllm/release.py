"""Which versions of vLLM are known, and what has to be known of each."""

import importlib.util
import os
from dataclasses import dataclass

from steadyrl.engine.base import EngineError


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """What has to be known of one version of vLLM."""

    keeps_expert_kernels: bool
    """On a CPU, an update leaves new experts in the checkpoint's layout, while their kernel reads the packed one. The
    kernels have to be dropped before, so that they are built, and the experts packed, again."""


SUPPORTED = {"0.30.0": Release(keeps_expert_kernels=True)}
"""Versions that the contract tests have passed on. Any other is refused."""

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # this process's threads are the trainer's as well
}
"""What vLLM reads from nowhere else. Values that the user has set are left alone."""


class MissingVLLM(EngineError):
    """vLLM is not installed, or in a version that is not known here."""


def require_vllm() -> str:
    """The version of vLLM that is installed.

    Raises:
        MissingVLLM: there is none, or one that is not in `SUPPORTED`.
    """
    if importlib.util.find_spec("vllm") is None:
        raise MissingVLLM('engine.kind = "vllm", but vLLM is not installed; `make vllm` installs it')
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    import vllm  # pyright: ignore[reportMissingImports]

    if vllm.__version__ not in SUPPORTED:
        raise MissingVLLM(
            f'engine.kind = "vllm": vLLM {vllm.__version__} is not supported; {", ".join(SUPPORTED)} is. '
            "`make vllm` installs it"
        )
    return vllm.__version__


def runs_on_cpu() -> bool:
    """Whether this build of vLLM computes on a CPU."""
    from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

    return current_platform.is_cpu()
