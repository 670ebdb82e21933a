"""What is read from the source of a class is what the class says when it is imported."""

import inspect
from dataclasses import MISSING
from typing import get_type_hints

import pytest

from steadyrl.options.source import ROOMS, declared, meanings

EVERY = [(section, chosen) for section in ROOMS for chosen in declared(section)]


@pytest.mark.parametrize(("section", "chosen"), EVERY)
def test_the_source_says_what_the_class_says(section: str, chosen: str) -> None:
    one = declared(section)[chosen]
    found = one.load()
    assert getattr(found, ROOMS[section].tag) == chosen
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(found).parameters.items()
        if name not in ROOMS[section].given and name != "model"
    }
    settable = {name: option for name, option in one.options.items() if option.settable}
    assert settable.keys() == parameters.keys()
    types = get_type_hints(found.__init__, include_extras=True)
    for name, option in settable.items():
        default = inspect.Parameter.empty if option.default is MISSING else option.default
        assert parameters[name].default == default
        assert types[name] == option.type


@pytest.mark.parametrize(("section", "chosen"), EVERY)
def test_every_option_has_a_meaning(section: str, chosen: str) -> None:
    options = declared(section)[chosen].options
    assert [name for name, option in options.items() if not option.meaning] == []


def test_a_constant_of_a_class_is_no_option() -> None:
    mean = declared("objective")["dapo"].options["mean"]
    assert (mean.default, mean.settable) == ("group_tokens", False)


def test_a_meaning_ends_where_the_next_begins() -> None:
    arguments = "Args:\n    one: The first,\n        in two lines.\n    other: The second.\n"
    found = meanings(f"A class.\n\n{arguments}\nRaises:\n    Error: no.")
    assert found == {"one": "The first, in two lines.", "other": "The second."}
    assert meanings("No arguments.") == {}
