import subprocess
import sys

CODE = """
import builtins, sys
original = builtins.__import__
def guarded(name, *args, **kwargs):
    if name.partition(".")[0] in {"transformers", "pydantic", "safetensors", "reasoning_gym", "matplotlib"}:
        raise ImportError(f"{name} is not there")
    return original(name, *args, **kwargs)
builtins.__import__ = guarded
import torch
from steadyrl.algo import MiniRL, Tokens, ledger
flat = torch.zeros(2)
tokens = Tokens(rollout_logprobs=flat, old_logprobs=flat, advantages=flat + 1, response_tokens=flat + 2,
                group_tokens=flat + 2, response=torch.zeros(2, dtype=torch.long))
print(MiniRL()(flat - 1.0, tokens, responses=1, groups=1).surrogate.sum().item() < 0.0)
print(sorted(m for m in sys.modules if m.startswith("steadyrl")))
"""


def test_the_library_needs_torch_only() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, modules = done.stdout.splitlines()
    assert first == "True"
    rooms = {name.split(".")[1] for name in eval(modules) if "." in name}
    assert rooms == {"algo", "options", "types", "errors"}
