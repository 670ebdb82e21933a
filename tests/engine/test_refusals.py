"""What vLLM says when it refuses, in one line."""

import logging

import pytest

from recipes_for_tests import TINY, merged
from steadyrl.engine.local import LocalEngine
from steadyrl.engine.vllm.refusals import exceptions_logged, last_cause
from steadyrl.parts import prepared_parts
from steadyrl.recipe import resolve

PYDANTIC = """1 validation error for ModelConfig
  Value error, Model architectures ['X'] failed to be inspected. [type=value_error, input_value=ArgsKwargs((), {}), …]
    For further information visit https://errors.pydantic.dev/2.14/v/value_error"""
PROCESS = """Error raised in subprocess:
Traceback (most recent call last):
  File "x.py", line 1, in <module>
ModuleNotFoundError: No module named 'torchvision'
"""


def test_the_words_of_a_validation_error_without_their_decoration() -> None:
    assert last_cause(ValueError(PYDANTIC)) == "Model architectures ['X'] failed to be inspected"


def test_the_cause_that_another_process_logged_is_named_last() -> None:
    said = last_cause(ValueError(PYDANTIC), ["an earlier one", PROCESS])
    assert said.endswith("failed to be inspected: ModuleNotFoundError: No module named 'torchvision'")


def test_the_innermost_of_a_chain() -> None:
    outer, inner = RuntimeError("engine core failed"), OSError("the disk is gone")
    outer.__cause__ = inner
    assert last_cause(outer) == "the disk is gone"


def test_an_exception_without_words() -> None:
    assert last_cause(AssertionError()) == "AssertionError"


def test_exceptions_that_are_only_logged_are_collected_while_asked_for() -> None:
    logged: list[str] = []
    logger = logging.getLogger("vllm")
    for inside in (True, False):
        with exceptions_logged(logged) if inside else pytest.MonkeyPatch.context():
            try:
                raise RuntimeError(f"inside: {inside}")
            except RuntimeError:
                logger.exception("failed")
    assert logged == ["inside: True"]


@pytest.mark.parametrize("broken", [False, True])
def test_a_run_closes_its_engine_however_it_ends(monkeypatch, broken: bool) -> None:
    closed = []
    monkeypatch.setattr(LocalEngine, "close", lambda engine: closed.append(engine))
    try:
        with prepared_parts(resolve(merged(TINY, {}), source="test")) as parts:
            assert not closed
            if broken:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert broken
    assert closed == [parts.rollouter.engine]
