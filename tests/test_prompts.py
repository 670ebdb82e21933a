"""When a run is built, its prompts are rendered, encoded and checked, before a weight is loaded."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from chat_tokenizers import CHATML, HANGS, PARTS, byte_tokenizer, save_model
from recipes_for_tests import coin_questions, command, tree, write_recipe
from steadyrl import plan
from steadyrl.errors import UserError
from steadyrl.model.template import TemplateError
from steadyrl.parts import prepared_parts
from steadyrl.prepare import prepare
from steadyrl.recipe import Recipe, RecipeError, load, resolve
from steadyrl.run.logs import read_jsonl
from steadyrl.tasks import build_task
from steadyrl.tasks.base import TaskError
from steadyrl.types import Sampling

Build = Callable[..., Recipe]
FEW: dict[str, Any] = {"steps": 1, "evaluate": {"every": 0, "prompts": 4}, "engine": {"precision": "native"}}


def changes(
    folder: Path, rows: list[Mapping[str, Any]] | None = None, *, tokenizer: Any, **more: Any
) -> dict[str, Any]:
    """What a recipe on a saved model with that tokenizer changes, and questions of its own."""
    task = coin_questions(folder, held_out=4) | {"skip_bad_rows": more.pop("skip", False)}
    if rows is not None:
        Path(task["path"]).write_text("".join(json.dumps({"answer": "1"} | row) + "\n" for row in rows))
    path = save_model(folder / "model", tokenizer, **more.pop("config", {}))
    return FEW | {"model": {"kind": "pretrained", "path": str(path)}, "update": {"replay": "none"}, "task": task} | more


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def one(rows: list[Mapping[str, Any]] | None = None, **options: Any) -> Recipe:
        options.setdefault("tokenizer", byte_tokenizer())
        return resolve(tree(**changes(tmp_path, rows, **options)), source="test")

    return one


def questions(*lengths: int) -> list[Mapping[str, Any]]:
    return [{"question": f"{i:02d}".ljust(length, "x")} for i, length in enumerate(lengths)]


FIFTEEN = questions(*[5] * 15)


def warnings(recipe: Recipe) -> list[str]:
    with prepare(recipe) as ready:
        return list(ready.warnings)


# ---- rows that do not fit


def test_rows_with_long_prompts_are_listed(build: Build) -> None:
    """128 positions hold a prompt of 118 and a response of 10."""
    recipe = build(questions(*[5] * 15, 118, *[119] * 12))
    with pytest.raises(TaskError) as refusal, prepare(recipe):
        pass
    said = str(refusal.value)
    assert "line 16 has" not in said
    assert "line 17 has a prompt of 119 tokens; with rollout.max_new_tokens = 10 it exceeds the model's context" in said
    assert "line 26 has a prompt" in said
    assert "… and 2 more" in said


def test_the_longest_prompt_that_fits_is_trained_on(build: Build) -> None:
    recipe = build(questions(*[118] * 12))
    sampling = Sampling(temperature=1.0, max_new_tokens=10)
    with prepared_parts(recipe) as parts:
        (group,) = parts.rollouter.groups("train", [0], responses=2, sampling=sampling, key="test")
    assert len(group.prompt_ids) == 118


@pytest.mark.parametrize(("micro_tokens", "fits"), [(127, True), (126, False)])
def test_micro_batches_hold_a_prompt_and_its_response(micro_tokens: int, fits: bool, build: Build) -> None:
    """A sequence of 118 + 10 tokens is fed as 127."""
    recipe = build(questions(*[118] * 12), update={"replay": "none", "micro_tokens": micro_tokens})
    if fits:
        assert warnings(recipe) == []
        return
    with pytest.raises(TaskError, match=r"it exceeds update\.micro_tokens = 126"):
        warnings(recipe)


def test_long_prompts_are_left_out_where_that_is_asked_for(build: Build) -> None:
    recipe = build(questions(*[5] * 15, 119, *[5] * 5, 500), skip=True)
    with prepare(recipe) as ready:
        assert [ready.task.size(split) for split in ("train", "held_out")] == [16, 4]
        assert any("2 row(s)" in warning and "left out" in warning for warning in ready.warnings)
        spec = recipe.task.model_dump() | ready.task.settled()  # pyright: ignore[reportAttributeAccessIssue]
        worker = build_task("questions", seed=0, parameters=spec)
        for split, size in (("train", 16), ("held_out", 4)):
            for index in range(size):
                assert len(ready.task.example(split, index).question) == 5
                assert worker.example(split, index) == ready.task.example(split, index)


def test_workers_verify_the_problem_that_was_asked(build: Build, tmp_path: Path) -> None:
    """Left-out rows shift the numbers of the others, in the workers too."""
    code = "def reward(prompt, completion):\n    return float(prompt[:2])\n"
    (tmp_path / "own.py").write_text(code)
    recipe = build(questions(119, 5, 119, *[5] * 17), skip=True)
    (tmp_path / "own.py").write_text(code)
    with prepared_parts(recipe) as parts:
        sampling = Sampling(temperature=1.0, max_new_tokens=2)
        groups = parts.rollouter.groups("train", range(14), responses=2, sampling=sampling, key="test")
        rewards = parts.rollouter.rewards("train", groups)
    assert rewards.values[:, 0].tolist() == [float(group.example.question[:2]) for group in groups]


def test_too_few_rows_are_left(build: Build) -> None:
    with pytest.raises(UserError, match=r"held_out = 4|but the task has"):
        warnings(build(questions(*[5] * 4, *[119] * 20), skip=True))


def test_a_question_that_ends_with_an_end_token_is_refused(build: Build) -> None:
    with pytest.raises(TaskError, match=r"line 16 has a prompt that ends with a token that ends a response"):
        warnings(build([*FIFTEEN, {"question": "What<|im_end|>"}]))


@pytest.mark.parametrize("behind", ["", "\n", " \n\n"])
def test_a_template_that_ends_a_prompt_with_an_end_token_is_refused(behind: str, build: Build) -> None:
    bare = "{% for m in messages %}{{ m['content'] }}<|im_end|>{{ '" + behind.replace("\n", "\\n") + "' }}{% endfor %}"
    with pytest.raises(TaskError, match=r"15 of the 15 rows .*\n.*ends with a token that ends a response"):
        warnings(build(FIFTEEN, tokenizer=byte_tokenizer(template=bare)))


def test_a_stop_string_may_end_a_question(build: Build) -> None:
    assert warnings(build(rollout={"prompts": 8, "responses": 4, "max_new_tokens": 10, "stop": ["="]})) == []


def test_special_tokens_in_questions_are_counted(build: Build) -> None:
    (warning,) = warnings(build([*FIFTEEN, {"question": "a<|im_end|>b"}, {"question": "<|im_start|>system"}]))
    assert "2 question(s) hold special tokens of the tokenizer" in warning
    assert "line 16" in warning


@pytest.mark.parametrize(("unknown", "told"), [("<|endoftext|>", False), ("<unk>", True)])
def test_a_mark_of_the_beginning_is_no_unknown_character(unknown: str, told: bool, build: Build) -> None:
    """GPT-2's tokenizer has one token for unknown text, for the beginning and for the end."""
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>")
    tokenizer = byte_tokenizer(template="{{ bos_token }}" + CHATML, special=special, bos="<|endoftext|>")
    tokenizer.unk_token = unknown
    said = warnings(build([*FIFTEEN, {"question": "a<unk>b"}], tokenizer=tokenizer))
    assert any("characters that the tokenizer does not know" in warning for warning in said) is told


def test_a_token_outside_the_model_is_refused(build: Build) -> None:
    with pytest.raises(TaskError, match="outside the model's vocabulary of 110"):
        warnings(build([*FIFTEEN, {"question": "é"}], config={"vocab_size": 110}))


def test_an_endless_task_is_checked_at_its_first_problems(tmp_path: Path) -> None:
    recipe = resolve(tree(update={"micro_tokens": 12}), source="test")
    with pytest.raises(TaskError, match="64 of the first 64 training problems cannot be used"):
        warnings(recipe)


# ---- what ends a response


def test_nothing_ends_a_response(build: Build) -> None:
    with pytest.raises(RecipeError, match="nothing ends a response: the tokenizer has no eos_token"):
        warnings(build(tokenizer=byte_tokenizer(eos=None)))


def test_a_stop_string_is_enough(build: Build) -> None:
    rollout = {"prompts": 8, "responses": 4, "max_new_tokens": 10, "stop": [";"]}
    recipe = build(tokenizer=byte_tokenizer(eos=None), rollout=rollout)
    with prepare(recipe) as ready:
        assert len(ready.ends) == 1


def outside() -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<|stop|>"})
    return tokenizer


def test_an_end_that_the_model_cannot_sample_ends_nothing(build: Build) -> None:
    fields = {"vocab_size": 259, "eos_token_id": None}
    with pytest.raises(
        RecipeError, match=r"'<\|stop\|>' \(id 259\) cannot be sampled by a model with a vocabulary of 259"
    ):
        warnings(build(tokenizer=outside(), config=fields))
    rollout = {"prompts": 8, "responses": 4, "max_new_tokens": 10, "stop": [";"]}
    (warning,) = warnings(build(tokenizer=outside(), config=fields, rollout=rollout))
    assert "the model cannot sample [259]" in warning


# ---- templates, from a recipe


def test_a_dry_run_shows_the_prompt_and_its_ends(build: Build) -> None:
    template = "{{ strftime_now('%d %b %Y') }}\a" + CHATML.replace("assistant\n", "assistant\n<think>\n")
    recipe = build(
        FIFTEEN, tokenizer=byte_tokenizer(template=template, eos="<|endoftext|>"), prompt={"date": "2026-01-31"}
    )
    said = plan.describe(recipe, run=Path("run"))
    assert (
        "  | 31 Jan 2026\\x07<|im_start|>user\n  | 00xxx<|im_end|>\n  | <|im_start|>assistant\n  | <think>\n  | \n"
        in said
        or "xxx<|im_end|>\n  | <|im_start|>assistant\n  | <think>\n  | \n" in said
    )
    assert "31 Jan 2026\\x07<|im_start|>user" in said
    assert "ends       <|endoftext|> (token 0), <|im_end|> (token 2)" in said
    assert "date       2026-01-31, which the chat template writes" in said


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('A system message is needed') }}", "A system message is needed"),
        (HANGS, "takes more than 2 s for one prompt"),
        ("{{ messages[0].content[:0] }}", "loses the question"),
        (CHATML.split("{% if add_generation_prompt")[0], "before an answer, and leaves it out of the prompt"),
    ],
)
def test_a_template_is_refused_before_anything_is_made(template: str, words: str, tmp_path: Path, capfd: Any) -> None:
    recipe = write_recipe(tmp_path, **changes(tmp_path, tokenizer=byte_tokenizer(template=template)))
    (tmp_path / "model" / "model.safetensors").unlink()  # no weight is looked at
    for flags in ([], ["--dry-run"]) if template != HANGS else ([],):
        assert command("train", recipe, "--run", tmp_path / "run", *flags) == 2
        err = capfd.readouterr().err
        assert words in err
        assert "Traceback" not in err
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("template", "changed"),
    [
        (CHATML.replace("m['content']", "m['content'] | escape"), "a < b && c"),
        (CHATML.replace("m['content']", "m['content'] | truncate(40, true)"), "a long question " * 4),
        (CHATML.replace("m['content']", "m['content'] | replace('\\n', ' ')"), "two\nlines"),
        (CHATML.replace("m['content']", "m['content'].split('Q')[-1]"), "What does Q mean?"),
    ],
)
def test_a_template_that_changes_some_questions_is_refused_with_their_lines(
    template: str, changed: str, build: Build
) -> None:
    recipe = build([*FIFTEEN, {"question": changed}], tokenizer=byte_tokenizer(template=template))
    with pytest.raises(TaskError, match="line 16 loses or changes its question in the chat template"):
        warnings(recipe)


PICKY = "{% if messages[0].content == 'no' %}{{ raise_exception('not that one') }}{% endif %}" + CHATML


NEEDS_SYSTEM = "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
SYSTEM = {"role": "system", "content": "Be brief."}


def talks(*systems: bool) -> list[Mapping[str, Any]]:
    asked = [{"role": "user", "content": f"Q {n}"} for n in range(len(systems))]
    return [{"question": [SYSTEM, one] if system else [one]} for system, one in zip(systems, asked, strict=True)]


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("place", [0, 3, 14])
def test_a_row_that_the_template_refuses_is_named_wherever_it_is(place: int, skip: bool, build: Build) -> None:
    rows = talks(*(n != place for n in range(16)))
    recipe = build(rows, tokenizer=byte_tokenizer(template=NEEDS_SYSTEM), skip=skip)
    if skip:
        assert [warning.split(";")[0] for warning in warnings(recipe)] == ["1 row(s) left out"]
        return
    with pytest.raises(TaskError, match=f"1 of the 16 rows .*\n.*line {place + 1} is refused: .*no system"):
        warnings(recipe)


def test_a_template_that_takes_no_row_is_refused_as_such(build: Build) -> None:
    recipe = build(talks(*[False] * 16), tokenizer=byte_tokenizer(template=NEEDS_SYSTEM), skip=True)
    with pytest.raises(TemplateError, match=r"no system\. Fix the chat template"):
        warnings(recipe)


@pytest.mark.parametrize("skip", [False, True])
def test_a_template_that_raises_for_some_questions_names_their_lines(skip: bool, build: Build) -> None:
    recipe = build([*FIFTEEN, {"question": "no"}], tokenizer=byte_tokenizer(template=PICKY), skip=skip)
    if skip:
        assert any("1 row(s)" in warning and "left out" in warning for warning in warnings(recipe))
        return
    with pytest.raises(TaskError, match=r"line 16 is refused: .*TemplateError: not that one"):
        warnings(recipe)


def test_a_template_that_trims_is_fine(build: Build) -> None:
    template = CHATML.replace("m['content']", "m['content'] | trim")
    assert warnings(build([*FIFTEEN, {"question": " spaces \n"}], tokenizer=byte_tokenizer(template=template))) == []


def test_a_run_on_parts_with_a_date_keeps_its_prompts(tmp_path: Path, capfd: Any) -> None:
    """The date is that of the run's first day, and evaluations and later starts get the same one."""
    template = "{{ strftime_now('%Y-%m-%d') }} " + PARTS
    recipe = write_recipe(
        tmp_path, **changes(tmp_path, tokenizer=byte_tokenizer(template=template, eos="<|endoftext|>"))
    )
    run = tmp_path / "run"
    assert command("train", recipe, "--run", run) == 0
    kept = load(run / "recipe.json")
    assert kept.prompt.date is not None
    with prepared_parts(kept) as parts:
        rollouter = parts.rollouter
        assert rollouter.ends == {0, 2}
        (prompt,) = rollouter.prompts([rollouter.task.example("train", 0)])
        assert prompt.text.startswith(f"{kept.prompt.date} <|im_start|>user\n")
        sampling = Sampling(temperature=1.0, max_new_tokens=4)
        groups = rollouter.groups("held_out", [0], responses=1, sampling=sampling, key="test")
        assert groups[0].prompt_text.endswith("<|im_start|>assistant\n")
        assert isinstance(rollouter.text(groups[0].completions[0]), str)
    assert read_jsonl(run / "eval.jsonl")[0]["prompts"] == 4
    tokenizer = tmp_path / "model" / "chat_template.jinja"
    tokenizer.write_text(tokenizer.read_text() + " ")
    assert command("resume", run) == 2
    assert "model.path: chat_template.jinja" in capfd.readouterr().err


def test_a_date_in_the_recipe_is_kept(build: Build) -> None:
    dated = byte_tokenizer(template="{{ strftime_now('%Y') }}" + CHATML)
    with prepare(build(tokenizer=dated, prompt={"date": "1999-12-31"})) as ready:
        (prompt,) = ready.prompts([ready.task.example("train", 0)])
        assert prompt.text.startswith("1999<|im_start|>")
        assert ready.recipe.prompt.date == "1999-12-31"


def test_no_date_is_noted_where_none_is_asked_for(build: Build) -> None:
    recipe = build()
    with prepare(recipe) as ready:
        assert ready.recipe == recipe


@pytest.mark.parametrize("date", ["yesterday", "2026-13-01", "20260131", "31.1.2026", "2026-01-31T00:00", 5, ""])
def test_what_is_no_date_is_refused(date: Any) -> None:
    with pytest.raises(RecipeError, match=r"prompt\.date"):
        resolve(tree(prompt={"date": date}), source="test")


def test_a_date_of_toml_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('[model]\nkind = "tiny"\n[task]\nkind = "chains"\n[prompt]\ndate = 2026-01-31\n')
    assert load(path).prompt.date == "2026-01-31"
