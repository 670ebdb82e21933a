"""How results are kept, and when a stored run no longer fits its figure."""

import json
import lzma
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from labs_for_tests import FALLEN, stored_pair

from steadyrl.recipe import RecipeError
from steadyrl_lab.archive import ResultError, collect, finished, pack, results_of, store
from steadyrl_lab.figure import (
    changed_fields,
    load_figure,
    recipes_of,
)
from steadyrl_lab.report import page


def test_a_damaged_result_is_named(lab: Path) -> None:
    stored_pair(lab)
    pack(lab, "pair")
    for path in (lab / "runs" / "pair" / "with-3" / "result.json", lab / "results" / "pair.jsonl.xz"):
        path.write_bytes(path.read_bytes()[:40])
        with pytest.raises(ResultError, match=rf"{path.name} is damaged"):
            results_of(lab, load_figure(lab, "pair"))
        path.unlink()


def test_a_packed_figure_keeps_what_is_read(lab: Path) -> None:
    logged = dict.fromkeys(("replay/k3_natural", "weight/ess", "surrogate/value_gap"), [0.5] * 12)
    stable = stored_pair(lab, "without")
    store(lab, replace(stable, steps=stable.steps | logged))
    with_r3 = stored_pair(lab, replay="R3")
    store(lab, replace(with_r3, steps=with_r3.steps | logged))

    def packed() -> dict[str, set[str]]:
        pack(lab, "pair")
        lines = lzma.decompress((lab / "results" / "pair.jsonl.xz").read_bytes()).splitlines()
        return {run["arm"]: set(run["steps"]) for run in map(json.loads, lines)}

    drawn = {"reward/mean", "policy/entropy", "mismatch/k3"}
    assert packed() == {"with": drawn | {"replay/k3_natural"}, "without": drawn}  # no alarm where nothing collapsed
    store(lab, replace(stable, status="stopped", steps=stable.steps | logged))
    assert packed()["without"] == drawn | {"weight/ess", "surrogate/value_gap"}


def test_a_packed_figure_says_the_same_without_its_runs(lab: Path) -> None:
    stored_pair(lab)
    stored_pair(lab, "without", rewards=FALLEN)
    text = page(lab)
    pack(lab, "pair")
    path = lab / "results" / "pair.jsonl.xz"
    before = path.read_bytes()
    path.unlink()
    pack(lab, "pair")
    assert path.read_bytes() == before
    shutil.rmtree(lab / "runs")
    assert page(lab) == text
    again = stored_pair(lab, accuracy=0.75)  # a newer run replaces the packed one
    assert finished(lab, load_figure(lab, "pair"))["with", 3] == again


def test_a_field_that_recipes_get_later_changes_no_stored_run(lab: Path) -> None:
    now = recipes_of(lab, load_figure(lab, "pair"), "without", 3)
    then = now.dump()
    assert changed_fields(then, now) == []
    del then["own"]["objective"]["clip_low"], then["own"]["verifier"]
    assert changed_fields(then, now) == []  # both are at their default
    del then["own"]["objective"]["clip"], then["cold"]["cold_start"]["batch"]
    assert changed_fields(then, now) == ["cold.cold_start.batch", "own.objective.clip"]
    then = now.dump()
    then["own"]["seed"] = 4
    then["own"]["objective"]["of_old"] = 1.0
    assert changed_fields(then, now) == ["own.seed", "own.objective.of_old"]


def test_a_stored_run_may_have_names_of_earlier_versions(lab: Path) -> None:
    one = stored_pair(lab)
    for recipe in one.recipe.values():
        recipe["hold"] = recipe.pop("runtime")
    store(lab, one)
    assert list(finished(lab, load_figure(lab, "pair"))) == [("with", 3)]


def test_a_pause_does_not_count_as_time_of_training(tmp_path: Path) -> None:
    rows = [{"step": step, "reward/mean": 0.123456, "seconds/step": 2.0} for step in (1, 2, 3)]
    rows[2]["seconds/step"] = 600.0
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "eval.jsonl").write_text("")
    facts = {
        "figure": "f",
        "arm": "a",
        "seed": 0,
        "recipe": {},
        "minibatches": 8,
        "replay": "none",
        "status": "finished",
    }
    one = collect(tmp_path, **facts)
    assert (one.seconds, one.steps) == (6.0, {"reward/mean": [0.12346] * 3})


def test_claims_may_name_arms_of_other_figures(lab: Path) -> None:
    other = (lab / "figures" / "pair.toml").read_text().replace('arm = "with"', 'arm = "pair/with"')
    (lab / "figures" / "other.toml").write_text(other)
    stored_pair(lab)
    assert [r.figure for r in results_of(lab, load_figure(lab, "other"))["pair/with"]] == ["pair"]
    (lab / "figures" / "other.toml").write_text(other.replace("pair/with", "pair/nobody"))
    with pytest.raises(RecipeError, match="other names 'pair/nobody'"):
        results_of(lab, load_figure(lab, "other"))
