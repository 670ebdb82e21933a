"""A resumed run notices what it reads and what has changed since: rows, reward functions, models."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from chat_tokenizers import CHATML, byte_tokenizer, save_model
from recipes_for_tests import COIN, coin_questions, command, tree, write_recipe
from steadyrl.preflight import task_fields
from steadyrl.recipe import load, resolve
from steadyrl.run.inputs import changes, inputs_of, told
from steadyrl.run.logs import read_jsonl
from steadyrl.tasks import build_task

FEW = {
    "steps": 1,
    "evaluate": {"every": 0, "prompts": 4},
    "checkpoints": {"every": 1},
    "verifier": {"audit": False},
}


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, data: list[dict], *, blank: bool = False) -> None:
    path.write_text("".join(json.dumps(row) + "\n" * (1 + blank) for row in data))


@pytest.fixture
def digests(tmp_path: Path) -> Callable[[], dict[str, str]]:
    """What a run on questions, an own reward function with a neighbour, and a saved model would note now."""
    task = coin_questions(tmp_path, reward="import helper\nfrom deep import er\n" + COIN)
    for name in ("helper.py", "unused.py"):
        (tmp_path / name).write_text("x = 1\n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "__init__.py").write_text("from . import er\n")
    (tmp_path / "deep" / "er.py").write_text("import helper\n")
    (tmp_path / "deep" / "helper.py").write_text("x = 2\n")
    model = {"kind": "pretrained", "path": str(save_model(tmp_path / "model", byte_tokenizer(template=CHATML)))}
    (tmp_path / "own.py").write_text(COIN)  # the task loads it; what it imports is only read
    recipe = resolve(tree(model=model, task=task, update={"replay": "none"}), source="test")
    questions = recipe.task.model_dump()
    build_task("questions", seed=0, parameters=questions)
    (tmp_path / "own.py").write_text("import helper\nfrom deep import er\n" + COIN)

    def now() -> dict[str, str]:
        source = (tmp_path / "own.py").read_text()
        (tmp_path / "own.py").write_text(COIN)
        built = build_task("questions", seed=0, parameters=questions)
        (tmp_path / "own.py").write_text(source)
        return inputs_of(recipe, built)

    return now


def first_answer(folder: Path) -> None:
    data = rows(folder / "questions.jsonl")
    write(folder / "questions.jsonl", [data[0] | {"answer": "other"}, *data[1:]])


def order(folder: Path) -> None:
    write(folder / "questions.jsonl", rows(folder / "questions.jsonl")[::-1])


def fewer(folder: Path) -> None:
    write(folder / "questions.jsonl", rows(folder / "questions.jsonl")[1:])


def more(folder: Path) -> None:
    write(folder / "questions.jsonl", [*rows(folder / "questions.jsonl"), {"question": "new", "answer": "1"}])


def header(folder: Path) -> None:
    path = folder / "model" / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"F32"', b'"I32"', 1))


def appended(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text((path.read_text() if path.exists() else "") + " \n# changed")

    return change


NOTICED = {
    "an answer": (first_answer, ["the rows of task.path"]),
    "the order of the rows": (order, ["the rows of task.path"]),
    "a row less": (fewer, ["the rows of task.path"]),
    "a row more": (more, ["the rows of task.path"]),
    "the reward function": (appended("own.py"), ["task.reward: own.py"]),
    "what it imports": (appended("helper.py"), ["task.reward: helper.py"]),
    "what that imports": (appended("deep/er.py"), ["task.reward: deep/er.py"]),
    "a file of the same name": (appended("deep/helper.py"), ["task.reward: deep/helper.py"]),
    "its package": (appended("deep/__init__.py"), ["task.reward: deep/__init__.py"]),
    "the config": (appended("model/config.json"), ["model.path: config.json"]),
    "the ends": (appended("model/generation_config.json"), ["model.path: generation_config.json"]),
    "the tokenizer": (appended("model/tokenizer.json"), ["model.path: tokenizer.json"]),
    "its config": (appended("model/tokenizer_config.json"), ["model.path: tokenizer_config.json"]),
    "the template": (appended("model/chat_template.jinja"), ["model.path: chat_template.jinja"]),
    "a new file of the tokenizer": (appended("model/added_tokens.json"), ["model.path: added_tokens.json"]),
    "types of weights": (header, ["model.path: model.safetensors, names and shapes"]),
}


@pytest.mark.parametrize("what", NOTICED)
def test_a_change_is_noticed_by_its_name(what: str, digests: Callable[[], dict[str, str]], tmp_path: Path) -> None:
    change, names = NOTICED[what]
    before = digests()
    change(tmp_path)
    assert list(changes(before, digests())) == names


def test_a_changed_set_is_named(tmp_path: Path) -> None:
    task = coin_questions(tmp_path)
    tests = [{"question": f"test {n}", "answer": "1"} for n in range(3)]
    sets = [{"name": name, "path": str(tmp_path / f"{name}.jsonl")} for name in ("one", "two")]
    for name in ("one", "two"):
        write(tmp_path / f"{name}.jsonl", tests)
    recipe = resolve(tree(task=task, evaluate={"every": 0, "prompts": 4, "sets": sets}), source="test")
    before = inputs_of(recipe, build_task("questions", seed=0, parameters=task_fields(recipe)))
    assert [before[f"the rows of evaluate.sets, {name}"][:7] for name in ("one", "two")] == ["3 rows,", "3 rows,"]
    assert before["the rows of task.path"].startswith("64 rows, ")
    write(tmp_path / "two.jsonl", tests[:2])
    after = inputs_of(recipe, build_task("questions", seed=0, parameters=task_fields(recipe)))
    assert list(changes(before, after)) == ["the rows of evaluate.sets, two"]


def spaces(folder: Path) -> None:
    write(folder / "questions.jsonl", rows(folder / "questions.jsonl"), blank=True)


def weights(folder: Path) -> None:
    path = folder / "model" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "change",
    [spaces, weights, appended("unused.py"), appended("model/README.md"), appended("model/notes.txt")],
)
def test_what_a_run_does_not_read_may_change(
    change: Callable[[Path], None], digests: Callable[[], dict[str, str]], tmp_path: Path
) -> None:
    before = digests()
    change(tmp_path)
    assert changes(before, digests()) == {}


def test_a_run_on_made_problems_reads_nothing(tmp_path: Path) -> None:
    recipe = resolve(tree(), source="test")
    task = build_task("chains", seed=0, parameters=recipe.task.model_dump())
    assert inputs_of(recipe, task) == {}


def test_changes_are_told_with_both_sides() -> None:
    changed = changes({"a": "1 rows, " + "f" * 64, "b": "0" * 64}, {"a": "2 rows, " + "e" * 64, "c": "1" * 64})
    assert told(changed).splitlines() == [
        "  a: 1 rows, ffffffffffff when the run began or was last accepted, 2 rows, eeeeeeeeeeee now",
        "  b: 000000000000 when the run began or was last accepted, absent now",
        "  c: absent when the run began or was last accepted, 111111111111 now",
    ]


# ---- in a run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    task = coin_questions(tmp_path)
    assert command("train", write_recipe(tmp_path, task=task, **FEW), "--run", tmp_path / "run") == 0
    return tmp_path / "run"


def test_resume_refuses_changed_data_and_takes_them_when_told_to(run: Path, tmp_path: Path, capfd) -> None:
    fewer(tmp_path)
    before = (run / "recipe.json").read_text()
    assert command("resume", run) == 2
    err = capfd.readouterr().err
    assert "the rows of task.path: 64 rows" in err
    assert "63 rows" in err
    assert f"`steadyrl resume {run} --accept-changes`" in err
    assert (run / "recipe.json").read_text() == before
    assert command("resume", run, "--accept-changes") == 0
    assert "continuing with what has changed" in capfd.readouterr().err
    (line,) = read_jsonl(run / "changes.jsonl")
    assert line["step"] == 1
    assert list(line["changed"]) == ["the rows of task.path"]
    assert command("resume", run) == 0  # it is what the run reads now
    assert len(read_jsonl(run / "changes.jsonl")) == 1


def test_resume_refuses_a_changed_reward_function_before_any_weight(run: Path, tmp_path: Path, capfd) -> None:
    appended("own.py")(tmp_path)
    (run / "checkpoints").rename(run / "elsewhere")
    assert command("resume", run) == 2
    assert "task.reward: own.py" in capfd.readouterr().err


def test_an_unchanged_run_resumes_without_a_word(run: Path, capfd) -> None:
    capfd.readouterr()
    assert command("resume", run, "--accept-changes") == 0
    assert capfd.readouterr().err.strip() == ""
    assert not (run / "changes.jsonl").exists()


def test_a_run_without_digests_resumes_with_a_warning_and_keeps_them_from_then_on(run: Path, tmp_path, capfd) -> None:
    tree = json.loads((run / "recipe.json").read_text())
    assert tree.pop("seen")["the rows of task.path"].startswith("64 rows, ")
    (run / "recipe.json").write_text(json.dumps(tree))
    assert command("resume", run) == 0
    assert "this run kept no digests" in capfd.readouterr().err
    fewer(tmp_path)
    assert command("resume", run) == 2


def test_a_recipe_that_is_changed_by_hand_holds(run: Path, tmp_path: Path, capfd) -> None:
    tree = json.loads((run / "recipe.json").read_text())
    (run / "recipe.json").write_text(json.dumps(tree | {"steps": 2}))
    assert command("resume", run) == 0
    assert len(read_jsonl(run / "metrics.jsonl")) == 2
    other = tmp_path / "other.jsonl"
    write(other, rows(tmp_path / "questions.jsonl")[2:])
    tree["task"]["path"] = str(other)
    (run / "recipe.json").write_text(json.dumps(tree | {"steps": 2}))
    assert command("resume", run) == 2
    assert "the rows of task.path: 64 rows" in capfd.readouterr().err
    assert command("resume", run, "--accept-changes") == 0
    assert load(run / "recipe.json").task.model_dump()["path"] == str(other)


def test_moved_data_are_the_same_data(run: Path, tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").rename(tmp_path / "moved.jsonl")
    text = (run / "recipe.json").read_text()
    (run / "recipe.json").write_text(text.replace("questions.jsonl", "moved.jsonl"))
    assert command("resume", run) == 0


def test_the_section_of_digests_is_no_part_of_a_recipe(run: Path, tmp_path: Path, capfd) -> None:
    assert load(run / "recipe.json") == load(tmp_path / "recipe-under-test.json")
    path = tmp_path / "r.toml"
    path.write_text('[seen]\nx = "1"\n[model]\nkind = "tiny"\n[task]\nkind = "chains"\n')
    assert command("train", path, "--dry-run") == 2
    assert "seen: unknown key" in capfd.readouterr().err


def test_a_damaged_section_of_digests_is_refused(run: Path, capfd) -> None:
    tree = json.loads((run / "recipe.json").read_text())
    for seen in ("x", 3, [1], {"a": 1}):
        (run / "recipe.json").write_text(json.dumps(tree | {"seen": seen}))
        assert command("resume", run) == 2
        assert "`seen` must hold digests by name" in capfd.readouterr().err


def test_the_lock_is_kept_while_the_recipe_is_rewritten(run: Path, tmp_path: Path, capfd, monkeypatch) -> None:
    from steadyrl import loop

    fewer(tmp_path)
    original, inner = loop.train, []

    def other_process(*args, **kwargs):
        inner.append(command("resume", run))
        return original(*args, **kwargs)

    monkeypatch.setattr(loop, "train", other_process)
    assert command("resume", run, "--accept-changes") == 0
    assert inner == [2]
    assert "is being trained by another process" in capfd.readouterr().err
