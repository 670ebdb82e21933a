"""Types of options: which values they take, and how a wrong one is told."""

import math
from typing import Annotated, Any

import pytest
from pydantic import TypeAdapter, ValidationError

from steadyrl.options.bounds import Bound, Name, NotAbove, OnlyWith, PathOrName, Within


def taken(type_: Any, value: Any) -> Any:
    return TypeAdapter(type_).validate_python(value)


def refused(type_: Any, value: Any) -> str:
    with pytest.raises(ValidationError) as error:
        taken(type_, value)
    return error.value.errors()[0]["msg"]


def test_ends_are_kept() -> None:
    closed, opened = Annotated[float, Within(ge=0.0, le=1.0)], Annotated[float, Within(gt=0.0, lt=1.0)]
    assert [taken(closed, value) for value in (0, 0.5, 1)] == [0.0, 0.5, 1.0]
    assert refused(opened, 0) == "Input should be greater than 0"
    assert refused(opened, 1) == "Input should be less than 1"
    assert refused(closed, -1) == "Input should be greater than or equal to 0"
    assert refused(Annotated[int, Within(ge=1, le=3)], 4) == "Input should be less than or equal to 3"


def test_a_boolean_and_what_is_not_finite_are_no_numbers() -> None:
    assert "must be a number (found true)" in refused(Annotated[int, Within(ge=0, le=3)], True)
    assert refused(Annotated[float, Within(ge=0.0)], math.nan) == "Input should be a finite number"
    assert refused(Annotated[float, Within(ge=0.0)], math.inf) == "Input should be a finite number"


def test_no_bound_is_inf_or_none() -> None:
    assert [taken(Bound, value) for value in (math.inf, None, 2)] == [None, None, 2.0]
    assert refused(Bound, -math.inf) == "Input should be a finite number"


def test_a_text_can_be_seen(monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert (taken(Name, "~/a"), taken(PathOrName, "~/a")) == ("~/a", "/home/me/a")
    assert "must be printable text that is not empty (found ' ')" in refused(Name, " ")
    assert "must be printable text" in refused(PathOrName, "a\nb")


def test_rules_between_options() -> None:
    assert NotAbove("b").fault("a", {"a": 2, "b": 1}) == "a = 2 is above b = 1"
    assert NotAbove("b").fault("a", {"a": 1, "b": 1}) is None
    assert NotAbove("b", strict=True).fault("a", {"a": 1, "b": 1}) == "a = 1 is not below b = 1"
    assert NotAbove("b", strict=True).fault("a", {"a": 1, "b": None}) is None
    rule = OnlyWith("mode", "mask")
    assert rule.fault("a", {"a": 1, "mode": "cut"}) == 'a = 1 only applies when mode = "mask"'
    assert rule.fault("a", {"a": 0, "mode": "cut"}) is None
    assert rule.fault("a", {"a": 1, "mode": "mask"}) is None
