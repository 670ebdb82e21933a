import json
import tomllib
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

import pytest
from pydantic import BaseModel

from recipes_for_tests import tree
from steadyrl.options.bounds import Within
from steadyrl.recipe import Recipe, RecipeError, load, resolve, shipped
from steadyrl.recipe.variants import SECTIONS, Chosen

RECIPES = sorted(shipped.FOLDER.glob("*.toml"))


def refused(**changes) -> str:
    """The message for the tiny recipe with changes."""
    with pytest.raises(RecipeError) as error:
        resolve(tree(**changes), source="a recipe")
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout": {"promts": 8}}, "rollout.promts: unknown key; did you mean `prompts`?"),
        ({"optimiser": {}}, "optimiser: unknown key; did you mean `optimizer`?"),
        ({"model": {"famly": "qwen3"}}, "model.famly: unknown key; did you mean `family`?"),
        ({"xyzzy": 1}, "xyzzy: unknown key"),
        ({"vllm": {}}, "vllm: unknown key"),  # what is also the name of a variant
        ({"objective": {"name": "minirl", "minirl": 1}}, "objective.minirl: unknown key"),
        ({"optimizer": {"betas": [1.0, 0.9]}}, "optimizer.betas.0: Input should be less than 1"),
        ({"seed": 2**63}, "seed: Input should be less than 9223372036854775808"),
        (
            {"objective": {"name": "composed", "weight_floor": 0.5}},
            'objective: weight_floor = 0.5 only applies when outside = "mask"',
        ),
        (
            {"objective": {"name": "composed", "outside": "mask", "weight_floor": 5, "weight_cap": 1}},
            "objective: weight_floor = 5.0 is not below weight_cap = 1.0",
        ),
        (
            {
                "task": {"kind": "questions", "path": "pairs.jsonl"},
                "cold_start": {"stages": [{"steps": 1, "task": {"held_out": 4}}]},
            },
            "stage 1 of cold_start changes task.held_out: it would train on held-out pairs",
        ),
        (
            {"steps": "many"},
            "steps: Input should be a valid integer, unable to parse string as an integer (found 'many')",
        ),
        (
            {"optimizer": {"learning_rate": -1}},
            "optimizer.learning_rate: Input should be greater than 0 (found -1)",
        ),
        ({"optimizer": {"learning_rate": float("nan")}}, "optimizer.learning_rate: Input should be a finite number"),
        ({"rollout": {"responses": 1}}, "rollout.responses: Input should be greater than or equal to 2 (found 1)"),
        (
            {"verifier": {"max_failures": 1.5}},
            "verifier.max_failures: Input should be less than or equal to 1 (found 1.",
        ),
        ({"update": {"replay": "R4"}}, "update.replay: Input should be 'none', 'R2' or 'R3' (found 'R4')"),
        ({"rollout": {"prompts": 12}, "update": {"minibatches": 5}}, "use one of [1, 2, 3, 4, 6, 12]"),
        ({"task": {"min_terms": 5, "max_terms": 3}}, "task: min_terms = 5 is above max_terms = 3"),
        ({"cold_start": {"stages": []}}, "cold_start.stages: Tuple should have at least 1 item"),
        (
            {"cold_start": {"stages": [{"steps": 1}, {"steps": 1, "task": {"max_term": 3}}]}},
            "the task of stage 2 of cold_start: max_term: unknown key; did you mean `max_terms`?",
        ),
        (
            {"cold_start": {"stages": [{"steps": 1, "task": {"max_terms": "a lot"}}]}},
            "the task of stage 1 of cold_start: max_terms: Input should be a valid integer",
        ),
        ({"task": {"kind": "chain"}}, "task.kind: 'chain' is unknown; did you mean `chains`?"),
        ({"objective": {"name": "ppo"}}, "objective.name: 'ppo' is unknown; did you mean `dppo_tv`?"),
        ({"trackers": ["csv"]}, "trackers.0: Input should be 'tensorboard', 'trackio' or 'wandb' (found 'csv')"),
    ],
)
def test_a_mistake_is_named_with_its_field_and_the_way_out(changes, message):
    told = refused(**changes)
    assert message in told
    assert told.startswith("a recipe: 1 mistake(s) in the recipe\n  ")
    assert len(told.splitlines()) == 2


def test_n_that_does_not_divide_b_is_named_with_both_numbers():
    told = refused(rollout={"prompts": 8}, update={"minibatches": 3})
    assert "update.minibatches = 3 does not divide rollout.prompts = 8; use one of [1, 2, 4, 8]" in told


@pytest.mark.parametrize("minibatches", [1, 2, 4, 8])
def test_n_that_divides_b_is_taken(minibatches):
    recipe = resolve(tree(update={"minibatches": minibatches}), source="test")
    assert recipe.update.minibatches == minibatches


def test_all_mistakes_are_told_at_once():
    told = refused(steps=-1, rollout={"promts": 8, "responses": 1}, optimizer={"learning_rate": "fast"})
    assert "4 mistake(s)" in told
    for field in ("steps", "rollout.promts", "rollout.responses", "optimizer.learning_rate"):
        assert f"\n  {field}: " in told


def test_a_missing_field_is_named():
    with pytest.raises(RecipeError, match=r"\n  task: Field required"):
        resolve({"model": {"kind": "tiny"}}, source="a recipe")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"steps = \n", r"is not valid TOML: .*line 1"),
        (b"[rollout]\nprompts = 8\nprompts = 9\n", r"is not valid TOML: .*overwrite"),
        (b"steps = '\xff'\n", r"cannot read the recipe .*\.toml"),
        (None, r"cannot read the recipe .*\.toml: .*No such file"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, content, message):
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        load(path)


def test_a_damaged_json_recipe(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text('{"steps": 4,')
    with pytest.raises(RecipeError, match=r"recipe\.json is not valid JSON"):
        load(path)


def test_rows_are_counted_from_few_to_many():
    task = {"kind": "rows", "min_rows": 5, "max_rows": 3}
    assert "task: min_rows = 5 is above max_rows = 3" in refused(task=task)


@pytest.mark.parametrize(
    ("section", "values", "chosen"),
    [
        ("model", {"kind": "pretrained", "path": "somewhere"}, "pretrained"),
        ("model", {"kind": "tiny"}, "tiny"),
        ("task", {"kind": "chains"}, "chains"),
        ("task", {"kind": "rows", "width": 6}, "rows"),
        ("task", {"kind": "reasoning_gym", "dataset": "chain_sum", "parameters": {"min_terms": 2}}, "reasoning_gym"),
        ("task", {"kind": "questions", "path": "pairs.jsonl"}, "questions"),
        ("engine", {"kind": "local", "precision": "fp8"}, "local"),
        ("engine", {"precision": "fp8"}, "local"),  # the embedded one unless another is named
        ("engine", {"kind": "vllm", "cache_gib": 2.0}, "vllm"),
        ("objective", {"name": "minirl", "clip": False, "weight_cap": None}, "minirl"),
        ("objective", {"name": "grpo", "clip_low": 0.1}, "grpo"),
        ("objective", {"name": "cispo"}, "cispo"),
    ],
)
def test_each_variant_is_chosen_by_its_kind(section, values, chosen):
    found = getattr(resolve({**tree(), section: values}, source="test"), section).model_dump()
    assert chosen in (found.get("kind"), found.get("name"))
    assert found.items() >= values.items()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "objective": {"name": "cispo", "clip_high": 0.5},
            "cold_start": {"stages": [{"steps": 3, "task": {"max_terms": 4}}, {"steps": 1}], "aux_loss": 0.1},
            "rollout": {"stop": [";", ">"]},
            "optimizer": {"max_grad_norm": None, "learning_rate": 1.2345678901234567e-7},
            "trackers": ["tensorboard"],
        },
        {"task": {"kind": "questions", "path": "a.jsonl"}},
    ],
)
def test_the_resolved_json_loads_back_equal(tmp_path, changes):
    recipe = resolve(tree(**changes), source="test")
    path = tmp_path / "recipe.json"
    path.write_text(recipe.model_dump_json(indent=2))
    assert load(path) == recipe


def test_the_home_folder_is_written_out(monkeypatch):
    """A run remembers where its files are, whoever resumes it."""
    monkeypatch.setenv("HOME", "/home/me")
    recipe = resolve(
        tree(
            model={"kind": "pretrained", "path": "~/model"},
            task={"kind": "questions", "path": "~/a.jsonl", "reward": "~/own.py:reward"},
            verifier={"folder": "~/work"},
            evaluate={"every": 0, "prompts": 4, "sets": [{"name": "test", "path": "~/b.jsonl"}]},
            update={"replay": "none"},
        ),
        source="test",
    )
    assert recipe.model.path == "/home/me/model"
    assert (recipe.task.path, recipe.task.reward) == ("/home/me/a.jsonl", "/home/me/own.py:reward")
    assert (recipe.verifier.folder, recipe.evaluate.sets[0].path) == ("/home/me/work", "/home/me/b.jsonl")


def test_toml_and_json_give_the_same_recipe(tmp_path):
    text = 'steps = 3\nmodel.kind = "tiny"\n[task]\nkind = "chains"\nmax_terms = 4\n[rollout]\nstop = [";"]\n'
    (tmp_path / "a.toml").write_text(text)
    (tmp_path / "a.json").write_text(json.dumps(tomllib.loads(text)))
    recipe = load(tmp_path / "a.toml")
    assert recipe == load(tmp_path / "a.json")
    assert (recipe.steps, recipe.task.max_terms, recipe.rollout.stop) == (3, 4, (";",))


def test_inf_is_no_bound(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(
        '[model]\nkind = "tiny"\n[task]\nkind = "chains"\n[optimizer]\nmax_grad_norm = inf\n'
        '[objective]\nname = "minirl"\nweight_cap = inf\n'
    )
    recipe = load(path)
    assert (recipe.optimizer.max_grad_norm, recipe.objective.weight_cap) == (None, None)
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    assert load(tmp_path / "recipe.json") == recipe


def test_the_defaults_are_the_papers():
    recipe = resolve({"model": {"kind": "tiny"}, "task": {"kind": "chains"}}, source="test")
    objective = recipe.objective
    assert objective.name == "minirl"
    assert (objective.clip_low, objective.clip_high, objective.weight_cap) == (0.2, 0.27, 5.0)
    assert objective.clip
    assert objective.importance_sampling
    assert not objective.length_norm


def test_a_recipe_cannot_be_changed():
    recipe = resolve(tree(), source="test")
    with pytest.raises(ValueError, match="frozen"):
        recipe.steps = 5


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_of_the_house_loads(path):
    assert isinstance(load(path), Recipe)


def test_there_are_recipes():
    assert {"demo.toml", "smoke.toml"} <= {path.name for path in RECIPES}


def numbers(section: type[BaseModel], place: str = "") -> Iterator[tuple[str, Any]]:
    """Every number that a recipe may hold, with its annotation."""
    for name, field in section.model_fields.items():
        for mark in field.metadata:
            for section in SECTIONS[mark.section].values() if isinstance(mark, Chosen) else ():
                yield from numbers(section, f"{place}.{name}.{section.__name__}")
        whole = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        yield from in_annotation(f"{place}.{name}", whole)


def in_annotation(place: str, annotation: Any) -> Iterator[tuple[str, Any]]:
    inner, *metadata = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    if inner in (int, float):
        yield place, metadata
    elif isinstance(inner, type) and issubclass(inner, BaseModel):
        yield from numbers(inner, place)
    else:
        for part in get_args(inner):
            whole = Annotated[part, *metadata] if part in (int, float) and metadata else part
            yield from in_annotation(place, whole)


def test_every_number_of_a_recipe_has_two_ends_and_is_no_boolean():
    found = dict(numbers(Recipe))
    assert len(found) > 50
    for place, metadata in found.items():
        (ends,) = (mark for mark in metadata if isinstance(mark, Within))
        assert (ends.ge is None) != (ends.gt is None), place
        assert (ends.le is None) != (ends.lt is None), place


@pytest.mark.parametrize("value", [True, float("nan"), float("inf")])
def test_what_is_no_number_is_refused_in_every_place(value):
    assert "optimizer.learning_rate: " in refused(optimizer={"learning_rate": value})
    assert "optimizer.betas.1: " in refused(optimizer={"betas": [0.9, value]})
    assert "objective.clip_low: " in refused(objective={"name": "minirl", "clip_low": value})


def test_the_recipe_of_an_older_run_keeps_its_columns(tmp_path):
    old = {"kind": "questions", "path": "pairs.jsonl", "question": "q", "answer": "a", "solution": None, "held_out": 16}
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(tree() | {"task": old}))
    task = load(path).task
    assert task.kind == "questions"
    assert (task.question_column, task.answer_column, task.solution_column) == ("q", "a", None)
    assert task.answer == "auto"


def test_a_recipe_nested_too_deeply_is_refused(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text("[" * 100_000)
    with pytest.raises(RecipeError, match="is not valid JSON"):
        load(path)
