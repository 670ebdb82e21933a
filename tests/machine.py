"""What this machine can do. Tests that need more than every machine has ask here, and are skipped with a reason."""

import functools
import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from steadyrl.conformance.families import build, named_config
from steadyrl.engine.kv_cache import missing_instructions

MEMORY = Path("/dev/shm")


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_folder_bytes() -> int:
    """Free bytes of /dev/shm; 0 where there is none."""
    return shutil.disk_usage(MEMORY).free if MEMORY.is_dir() else 0


@functools.cache
def unprivileged_namespaces() -> bool:
    """Whether a process without rights may make namespaces of users, mounts, processes and network; tried once."""
    tool = shutil.which("unshare")
    return (
        tool is not None and subprocess.run([tool, "-Urnmpf", "true"], capture_output=True, check=False).returncode == 0
    )


@functools.cache
def deepseek_v2_chooses_in_groups() -> bool:
    """Whether transformers can compute the group-limited choice of DeepSeek-V2; that of 5.10 raises AttributeError."""
    model = build(named_config("deepseek_v2 (group-limited)"))
    try:
        model(torch.zeros(1, 2, dtype=torch.long))
    except AttributeError:
        return False
    return True


def require_namespaces() -> None:
    """Skip the test that calls this where the system has no unprivileged namespaces."""
    if not unprivileged_namespaces():
        pytest.skip("this system lets no unprivileged process make namespaces")


def require_memory_folder(size: int) -> None:
    """Skip the test that calls this where /dev/shm has less than `size` bytes free."""
    if memory_folder_bytes() < size:
        pytest.skip(f"needs {size:,} bytes in {MEMORY}; {memory_folder_bytes():,} are free")


def has_gpu() -> bool:
    """Whether torch sees a CUDA device."""
    return torch.cuda.is_available()


GPU = "cuda"
"""The device of the tests for a GPU, as a recipe names it."""
on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not has_gpu(), reason="needs a CUDA device; torch sees none"),
]
"""Marks of a test that runs on a CUDA device."""
needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed; `make vllm` does it")
needs_fp8_cache = pytest.mark.skipif(
    missing_instructions() is not None,
    reason=f"vLLM's FP8 cache needs a CPU with {missing_instructions()}, and this one has neither",
)
needs_two_cores = pytest.mark.skipif(cores() < 2, reason=f"needs two CPU cores; this process may use {cores()}")


def without_fp8_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this CPU be one without AVX-512 and AMX, for torch's answers and so for vLLM."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


def with_fp8_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch answer that this CPU has AVX-512."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: True)
