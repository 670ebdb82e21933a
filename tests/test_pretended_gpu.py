"""A run on a GPU that is not there mixes no devices, and lets the host wait no more often than is allowed."""

import subprocess
import sys
from pathlib import Path

CASES = Path(__file__).with_name("pretended_gpu_cases.py")


def test_the_cases_of_the_pretended_gpu_hold():
    """In a process of its own: torch keeps the device, and must know it before the first backward pass."""
    command = [sys.executable, "-m", "pytest", str(CASES), "--tb=short", "-p", "no:cacheprovider"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
