"""`docs/objective.md` is held to the code: names, tests and the worked example."""

import re
from pathlib import Path

import pytest
import torch
from test_objective import THETA, TOKENS, value_and_gradient

from steadyrl import algo
from steadyrl.algo import Objective
from steadyrl.options.own import find_own, load_own
from steadyrl.options.source import declared
from steadyrl.recipe.table import with_table

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "objective.md").read_text(encoding="utf-8")


def test_the_table_is_that_of_the_code() -> None:
    assert with_table(PAGE) == PAGE


def test_every_objective_of_the_library_is_exported() -> None:
    exported = {name: getattr(algo, name) for name in algo.__all__}
    members = {name for name, kind in exported.items() if isinstance(kind, type) and Objective in kind.__mro__[1:]}
    assert {one.name for one in declared("objective").values()} == members
    assert all(one.load().name == name for name, one in declared("objective").items())


@pytest.mark.parametrize("named", sorted(set(re.findall(r"`(test_\w+\.py)::(\w+)`", PAGE))))
def test_every_test_named_is_there(named: tuple[str, str]) -> None:
    file, function = named
    (path,) = (ROOT / "tests").rglob(file)
    assert f"def {function}(" in path.read_text(encoding="utf-8")


def test_the_conventions_stand_in_one_table_against_six_peers() -> None:
    start = PAGE.index("## Conventions, against other libraries")
    rows = [line for line in PAGE[start : PAGE.index("\n## ", start)].splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
    assert cells[0] == ["convention", "SteadyRL", "verl", "TRL", "NeMo-RL", "slime", "SkyRL", "OpenRLHF"]
    assert all(len(row) == 8 and all(row) for row in cells)
    said = {row[0]: row[1] for row in cells[2:]}
    assert {"standard deviation", "group of one", "dual clip", "mean of VESPO", "geometric mask", "χ²"} <= set(said)
    # what it says of this library
    assert f"1 − ε_low = {1 - algo.CISPO().clip_low}" in said["lower bound of CISPO's weight"]
    assert (algo.VESPO().mean, algo.DAPO().mean, algo.CISPO().mean) == ("responses", "group_tokens", "group_tokens")
    assert algo.DAPO(token_mean="batch").mean == "batch_tokens"
    assert "ε = 0;" in said["standard deviation"]
    assert algo.GroupAdvantage().epsilon == 0.0
    alone = torch.tensor([[3.0]])
    assert ("Â = 0" in said["group of one"]) == (not algo.group_advantage(alone, normalise=True).any())


def test_the_worked_example_works() -> None:
    objective = load_own(find_own(f"{ROOT / 'examples' / 'root_is.py'}:RootIS", field="objective.name"))()
    (row,) = re.findall(r"^    \(RootIS\(\), (\[.*\])\),$", PAGE, flags=re.MULTILINE)
    _, gradient = value_and_gradient(objective, THETA, TOKENS)
    torch.testing.assert_close(gradient, torch.tensor(eval(row)))
