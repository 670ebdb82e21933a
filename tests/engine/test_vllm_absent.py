"""The project without vLLM, or with a version of it that is not known."""

import importlib.util
import subprocess
import sys
import types

import pytest

from recipes_for_tests import command, write_recipe
from steadyrl.engine.vllm import SUPPORTED, MissingVLLM, require_vllm


def test_nothing_imports_vllm_before_an_engine_is_made() -> None:
    code = "import sys, steadyrl.cli, steadyrl.loop, steadyrl.parts, steadyrl.engine.vllm; print('vllm' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "False"


def test_a_recipe_that_asks_for_what_is_not_installed(tmp_path, monkeypatch, capsys) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "vllm" else found(name, *more))
    recipe = write_recipe(tmp_path, engine={"kind": "vllm"})
    assert command("train", recipe, "--run", tmp_path / "run") == 2
    assert "`make vllm` installs it" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_another_version_is_refused_by_name(monkeypatch) -> None:
    other = types.ModuleType("vllm")
    other.__version__ = "0.31.0"  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "vllm", other)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: object())
    with pytest.raises(MissingVLLM, match=rf"vLLM 0\.31\.0 is not supported; {', '.join(SUPPORTED)} is"):
        require_vllm()
