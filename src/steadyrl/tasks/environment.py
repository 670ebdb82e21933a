"""The environment of a worker: what Python and its libraries need, and what the recipe names."""

from collections.abc import Mapping, Sequence

from steadyrl.tasks.base import TaskError

# fmt: off
_NAMES = frozenset({
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV", "CONDA_PREFIX",
    "LD_LIBRARY_PATH", "XDG_CACHE_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
    "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_HUB_OFFLINE",
    "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
    "TOKENIZERS_PARALLELISM",
})
# fmt: on
_BEGINNINGS = ("LC_", "PYTHON", "OMP_", "MKL_", "OPENBLAS_", "KMP_")


def worker_environment(environment: Mapping[str, str], named: Sequence[str]) -> dict[str, str]:
    """The variables a worker gets: those of an allow-list, and those that `verifier.environment` names.

    Raises:
        TaskError: a named variable is not set.
    """
    for name in named:
        if name not in environment:
            raise TaskError(
                f"verifier.environment names {name!r}, which is not set; export it before the run, or remove the name"
            )
    return {
        name: value
        for name, value in environment.items()
        if name in _NAMES or name in named or name.startswith(_BEGINNINGS)
    }
