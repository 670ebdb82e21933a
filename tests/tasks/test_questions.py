import json
import random
import sys
from pathlib import Path

import pytest

from steadyrl.recipe.shipped import FOLDER
from steadyrl.tasks import RewardPool, RewardRequest, Split, TaskError, build_task
from steadyrl.tasks.questions import Questions

ROWS = [{"question": f"{n}+{n}=", "answer": str(2 * n), "work": f"twice {n} is {2 * n}"} for n in range(40)]

REWARD = f"{FOLDER}/reward_exact.py:reward"


def write(folder: Path, rows: list) -> str:
    path = folder / "pairs.jsonl"
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


def questions(path: str, **changed: object) -> Questions:
    fields: dict = {"split": "train"}
    return Questions(**fields | {"path": path, "reward": "math_verify", "held_out": 8} | changed)


def held_out(task: Questions) -> list[str]:
    return [task.example("held_out", index).question for index in range(task.size("held_out") or 0)]


def train(task: Questions) -> list[str]:
    return [task.example("train", index).question for index in range(task.size("train") or 0)]


def test_every_pair_is_in_one_split(tmp_path: Path) -> None:
    task = questions(write(tmp_path, ROWS))
    assert len(held_out(task)) == 8
    assert sorted(held_out(task) + train(task)) == sorted(row["question"] for row in ROWS)


def test_held_out_pairs_do_not_depend_on_the_order_of_the_file(tmp_path: Path) -> None:
    before = held_out(questions(write(tmp_path, ROWS)))
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    task = questions(write(tmp_path, shuffled))
    assert held_out(task) == before
    assert train(task) == [row["question"] for row in shuffled if row["question"] not in before]


def test_a_repeated_question_is_in_one_split_only(tmp_path: Path) -> None:
    repeated = [*ROWS, *ROWS, *({**row, "answer": "7"} for row in ROWS)]
    task = questions(write(tmp_path, repeated))
    assert len(set(held_out(task))) == len(held_out(task)) == 8
    assert not set(held_out(task)) & set(train(task))
    assert len(train(task)) == 3 * 32
    backward = questions(write(tmp_path, repeated[::-1]))
    assert [task.example("held_out", n) for n in range(8)] == [backward.example("held_out", n) for n in range(8)]


def test_fields_and_solution(tmp_path: Path) -> None:
    path = write(tmp_path, [{"q": "1+1=", "a": 2, "work": "one and one"}, "\n", {"q": "2+2=", "a": 4, "work": "w"}])
    example = questions(path, question_column="q", answer_column="a", solution_column="work", held_out=1).example(
        "train", 0
    )
    assert example.answer in "24"
    assert example.solution in ("one and one", "w")
    plain = questions(path, question_column="q", answer_column="a", held_out=1).example("train", 0)
    assert plain.solution == plain.answer


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROWS[0], '{"question": \n'], "pairs.jsonl, line 2 is not JSON: "),
        ([ROWS[0], "\n", "[1, 2]\n"], "pairs.jsonl, line 3 is not a JSON object but list: [1, 2]"),
        (
            [ROWS[0], {"prompt": "x", "answer": 1}],
            "line 2 has no field `question`; it has `prompt`, `answer`",
        ),
        ([{"question": "x", "answer": None}], "line 1: `answer` must be text or a number, found None"),
        ([{"question": " ", "answer": 1}], "line 1: `question` is empty, found ' '"),
        ([{"question": "x", "answer": True}], "line 1: `answer` must be text or a number, found True"),
        (["\n"], "pairs.jsonl holds no question/answer pairs"),
        (ROWS[:8], "held_out = 8, but "),
        (ROWS[:8], "has 8 different question(s)"),
    ],
)
def test_bad_files_are_named_by_line_and_field(tmp_path: Path, rows: list, message: str) -> None:
    with pytest.raises(TaskError) as caught:
        questions(write(tmp_path, rows))
    assert message in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"cannot read the questions in .*nowhere\.jsonl"):
        questions(str(tmp_path / "nowhere.jsonl"))


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    folder.mkdir()
    datasets.Dataset.from_list(ROWS).to_parquet(folder / "train.parquet")
    return str(folder)


def test_a_hugging_face_dataset(hub_folder: str, tmp_path: Path) -> None:
    task = questions(hub_folder, solution_column="work")
    same = questions(write(tmp_path, ROWS), solution_column="work")
    assert [task.example("train", n) for n in range(32)] == [same.example("train", n) for n in range(32)]
    assert held_out(task) == held_out(same)


def test_mistakes_about_a_hugging_face_dataset(hub_folder: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"cannot load split 'test' of the dataset .*\['train'\]"):
        questions(hub_folder, split="test")
    with pytest.raises(TaskError, match=r"row 0 has no field `answr`; it has `question`, `answer`, `work`"):
        questions(hub_folder, answer_column="answr")
    with pytest.raises(TaskError, match="cannot load split 'train' of the dataset"):
        questions(str(tmp_path / "nothing here"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train.csv", "question,answer\n1.50,007\n2.50,NA\n3.50,2024-01-01\n"),
        (
            "train.jsonl",
            "".join(f'{{"question": {q}, "answer": "{a}"}}\n' for q, a in (("1.50", "007"), ("2.50", "NA"))),
        ),
    ],
)
def test_files_of_a_folder_are_not_retyped(tmp_path: Path, hub_folder: str, name: str, text: str) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / name).write_text(text)
    task = questions(str(folder), reward=REWARD, held_out=1)
    found = {(pair.question, pair.answer) for pair in task.examples}
    assert {("1.50", "007"), ("2.50", "NA")} <= found <= {("1.50", "007"), ("2.50", "NA"), ("3.50", "2024-01-01")}
    assert task.example("train", 0).place.startswith(f"{folder}, split train, line ")


def test_several_files_of_a_folder_are_read_in_turn(tmp_path: Path, hub_folder: str) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for part in (0, 1):
        (folder / f"train-0000{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[part::2]))
    task = questions(str(folder))
    assert sorted(train(task) + held_out(task)) == sorted(row["question"] for row in ROWS)
    assert f"{folder}, split train, train-00001.jsonl, line 20" in [pair.place for pair in task.examples]
    sliced = questions(str(folder), split="train[:20]")
    assert sorted(train(sliced) + held_out(sliced)) == sorted(row["question"] for row in ROWS[::2])


def test_a_folder_that_says_how_it_is_read_is_read_so(tmp_path: Path, hub_folder: str) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: a.csv\n  sep: ';'\n---\n")
    (folder / "a.csv").write_text("question;answer\nx;1\ny;2\n")
    task = questions(str(folder), held_out=1)
    assert sorted(train(task) + held_out(task)) == ["x", "y"]


def test_without_the_datasets_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TaskError, match=r"pip install steadyrl\[datasets\]"):
        questions("someone/something")


def test_the_example_recipe_data() -> None:
    task = questions(str(FOLDER / "arithmetic.jsonl.gz"), solution_column="solution", reward=REWARD, held_out=100)
    assert (task.size("train"), task.size("held_out")) == (3900, 100)
    for index in range(3900):
        example = task.example("train", index)
        assert task.reward("train", index, example.solution) == 1.0
        assert task.reward("train", index, example.solution + "0") == 0.0
        assert set(example.question + example.solution) <= set("0123456789+-=")


# ---- spellings of one question


@pytest.mark.parametrize(
    "spellings",
    [
        ["What is 1+1?", "What is 1+1? ", "What is 1+1?\n", "  What is 1+1?", "What  is\t1+1?", "What\u00a0is 1+1?"],
        ["caf\u00e9", "cafe\u0301"],
        ["\u1e9b\u0323", "\u017f\u0323\u0307"],
        ["1 + 1", "1\u3000+\r\n1", "1 +\u200b 1\ufeff"],
        ["\uac00", "\u1100\u1161"],
    ],
)
def test_all_spellings_of_a_question_are_on_one_side(tmp_path: Path, spellings: list[str]) -> None:
    for others in range(1, 12):
        rows = [{"question": text, "answer": "1"} for text in [*spellings, *(f"other {n}" for n in range(others))]]
        task = questions(write(tmp_path, rows), reward=REWARD, held_out=1 + others // 2)
        sides = {split for split in ("train", "held_out") if set(spellings) & set(ALL[split](task))}
        assert len(sides) == 1
        assert len(train(task)) + len(held_out(task)) == (len(rows) if sides == {"train"} else others + 1)
        assert [f"{len(spellings) - 1} question(s) of " in text for text in task.warnings()] == [True]


def test_further_spellings_make_up_the_number_where_questions_are_few(tmp_path: Path) -> None:
    texts = ["What is 1+1?", "What is 1+1? ", "What is 1+1?\n", "  What is 1+1?", "Other A", "Other B"]
    path = write(tmp_path, [{"question": text, "answer": "1"} for text in texts])
    task = questions(path, reward=REWARD, held_out=3)
    assert len(held_out(task)) == len(set(held_out(task))) == 3
    assert len({" ".join(text.split()) for text in held_out(task)}) == 2
    assert len(train(task)) == 1
    assert {" ".join(text.split()) for text in train(task)}.isdisjoint(" ".join(t.split()) for t in held_out(task))
    assert len(held_out(questions(path, reward=REWARD, held_out=5))) == 5
    with pytest.raises(TaskError, match=r"held_out = 6, but .* has 3 different question"):
        questions(path, reward=REWARD, held_out=6)


ALL = {"train": train, "held_out": held_out}


@pytest.mark.parametrize("pair", [("1+1", "1 + 1"), ("a", "A"), ("x\u00b2", "x2"), ("word", "wo rd"), ("\uff11", "1")])
def test_questions_that_differ_in_more_are_two(tmp_path: Path, pair: tuple[str, str]) -> None:
    task = questions(write(tmp_path, [{"question": q, "answer": "1"} for q in pair]), reward=REWARD, held_out=1)
    assert {*train(task), *held_out(task)} == set(pair)
    assert task.warnings() == []


def test_a_conversation_is_told_apart_by_all_its_turns_but_not_by_its_system_prompt(tmp_path: Path) -> None:
    def row(system: str, *turns: str) -> dict:
        talk = [{"role": "system", "content": system}]
        talk += [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(turns)]
        return {"question": talk, "answer": "1"}

    rows = [row("a", "go on"), row("b", "go on "), row("a", "x", "y", "go on"), row("a", "x", "z", "go on")]
    for n in (1, 2):
        task = questions(write(tmp_path, rows), reward=REWARD, held_out=n)
        assert train(task) + held_out(task) == ["go on"] * (len(rows) if not_held(task, "go on ") else len(rows) - 1)
        pairs = [task.example(split, i) for split in ("train", "held_out") for i in range(task.size(split) or 0)]
        assert len({json.dumps(pair.messages) for pair in pairs if len(pair.messages or ()) > 2}) == 2


def not_held(task: Questions, text: str) -> bool:
    return text in train(task)


def test_the_choice_of_the_exact_text_is_as_before(tmp_path: Path) -> None:
    import hashlib

    task = questions(write(tmp_path, ROWS))
    assert (
        held_out(task)
        == sorted((row["question"] for row in ROWS), key=lambda text: hashlib.sha256(text.encode()).digest())[:8]
    )


# ---- rows that are left out


BAD = [*ROWS[:10], "{\n", *ROWS[10:20], {"question": "x"}, *ROWS[20:], {"question": "y", "answer": "\\$"}]


def test_unreadable_references_are_rejected_with_their_lines_before_training(tmp_path: Path) -> None:
    rows = [row | {"answer": "\\$"} if n in (3, 9, 27, 39) else row for n, row in enumerate(ROWS)]
    with pytest.raises(TaskError) as caught:
        questions(write(tmp_path, rows))
    first, *lines = str(caught.value).splitlines()
    assert "4 of the 40 rows" in first
    assert [f"line {n}: `answer`: " in line for n, line in zip((4, 10, 28, 40), lines, strict=True)] == [True] * 4
    task = questions(write(tmp_path, rows), skip_bad_rows=True)
    assert len(task.left_out) == 4
    assert len(train(task)) == 28
    assert "4 row(s) left out; " in task.warnings()[0]
    assert "line 4: `answer`: " in task.warnings()[0]
    listed = [row | {"answer": [row["answer"], "\\$"]} if n == 5 else row for n, row in enumerate(ROWS)]
    with pytest.raises(TaskError, match="line 6: `answer`: "):
        questions(write(tmp_path, listed))


def test_bad_rows_are_left_out_and_counted_if_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, BAD)
    with pytest.raises(TaskError, match=r"3 of the 43 rows of .* cannot be used"):
        questions(path)
    task = questions(path, skip_bad_rows=True)
    assert [place.rpartition(" ")[2] for place in task.left_out] == ["11", "22", "43"]
    assert sorted(train(task) + held_out(task)) == sorted(row["question"] for row in ROWS)
    with pytest.raises(TaskError, match=r"1 of the 1 rows of .* cannot be used"):
        questions(write(tmp_path, ["{"]), skip_bad_rows=True)
    with pytest.raises(TaskError, match="held_out = 8, but "):
        questions(write(tmp_path, [*ROWS[:8], "{"]), skip_bad_rows=True)


def test_further_rows_are_left_out_by_place_and_a_worker_leaves_out_the_same(tmp_path: Path) -> None:
    path = write(tmp_path, BAD)
    task = questions(path, skip_bad_rows=True)
    held = task.example("held_out", 0)
    smaller = task.without({held.place: "has a prompt of 1,120 tokens", "elsewhere, line 1": "no row"})
    assert held.question not in held_out(smaller) + train(smaller)
    assert held_out(smaller)[:7] == held_out(task)[1:]
    assert smaller.left_out[held.place] == "has a prompt of 1,120 tokens"
    assert (len(task.left_out), len(smaller.left_out)) == (3, 4)
    settled = json.loads(json.dumps(smaller.settled()))
    worker = questions(path, skip_bad_rows=True, **settled)
    for split in ("train", "held_out"):
        assert [worker.example(split, n) for n in range(worker.size(split) or 0)] == [
            smaller.example(split, n) for n in range(smaller.size(split) or 0)
        ]
    assert questions(path, skip_bad_rows=True, leave_out=settled["leave_out"]).digest() == smaller.digest()
    assert task.without({}) is task


def test_verifier_workers_see_the_problems_of_the_run(tmp_path: Path) -> None:
    section = {"kind": "questions", "path": write(tmp_path, BAD), "reward": "math_verify", "skip_bad_rows": True}
    task = build_task("questions", seed=0, parameters=section | {"held_out": 8})
    assert isinstance(task, Questions)
    task = task.without({task.example("held_out", 3).place: "has a prompt of 1,120 tokens"})
    asked: list[tuple[Split, int]] = [("train", n) for n in range(31)] + [("held_out", n) for n in range(8)]
    requests = [RewardRequest(split=s, index=n, completion=task.example(s, n).answer) for s, n in asked]
    spec = section | {"held_out": 8} | task.settled()
    with RewardPool(spec, seed=0, workers=1, time_limit=10.0) as pool:
        assert [reward.value for reward in pool.rewards(requests)] == [1.0] * 39


def test_further_rows_are_refused_with_their_places_unless_they_may_be_left_out(tmp_path: Path) -> None:
    task = questions(write(tmp_path, ROWS))
    places = [pair.place for pair in task.examples][:2]
    with pytest.raises(TaskError) as caught:
        task.without(dict.fromkeys(places, "has a prompt of 1,120 tokens"))
    assert "line 1 has a prompt of 1,120 tokens" in str(caught.value)
    assert "line 2 has a prompt of 1,120 tokens" in str(caught.value)


@pytest.mark.parametrize(
    "changed", [ROWS[:-1], [*ROWS, ROWS[0]], [ROWS[1], ROWS[0], *ROWS[2:]], [ROWS[0] | {"answer": "9"}, *ROWS[1:]]]
)
def test_a_worker_notices_rows_that_have_changed(tmp_path: Path, changed: list) -> None:
    settled = questions(write(tmp_path, ROWS)).settled()
    assert questions(write(tmp_path, ROWS), **settled).digest() == settled["digest"]
    with pytest.raises(TaskError, match="have changed since the run began"):
        questions(write(tmp_path, changed), **settled)


def test_the_digest_is_that_of_the_rows_in_use(tmp_path: Path) -> None:
    plain = questions(write(tmp_path, ROWS)).digest()
    assert questions(write(tmp_path, ["\n", *ROWS, "\n"])).digest() == plain
    assert questions(write(tmp_path, [*ROWS, "{\n"]), skip_bad_rows=True).digest() == plain
    assert questions(write(tmp_path, ROWS), held_out=7).digest() != plain
    assert questions(write(tmp_path, ROWS), solution_column="work").digest() != plain
    assert questions(write(tmp_path, [row | {"hint": 1} for row in ROWS])).digest() != plain


# ---- sets that are only evaluated


def test_a_set_is_read_in_the_order_of_its_file_and_never_trained_on(tmp_path: Path) -> None:
    path = write(tmp_path, ROWS)
    (tmp_path / "tests.csv").write_text('q,a\n"0+0= ",0\nnew,1\n"1+1=",2\n"0+0=",0\n')
    one = {"name": "hard", "path": str(tmp_path / "tests.csv"), "subset": None, "split": "train"}
    sets = [one | {"question_column": "q", "answer_column": "a"}]
    task, without = questions(path, sets=sets), questions(path)
    assert [task.example("hard", n).question for n in range(task.size("hard"))] == ["0+0= ", "new", "1+1=", "0+0="]
    assert held_out(task) == held_out(without)
    assert train(task) == [text for text in train(without) if text not in ("0+0=", "1+1=")]
    gone = len(train(without)) - len(train(task))
    assert [f"{gone:,} training pair(s)" in text for text in task.warnings()] == ([True] if gone else [])
    assert task.reward("hard", 2, "2") == 1.0
    assert questions(path, sets=sets, **task.settled()).digest() == task.digest() != without.digest()
    whole = [one | {"path": path, "question_column": "question", "answer_column": "answer"}]
    with pytest.raises(TaskError, match=r"every training question of .* is in one of evaluate\.sets"):
        questions(path, sets=whole)
    (tmp_path / "tests.csv").write_text("q,a\nnew,\n")
    with pytest.raises(TaskError, match=r"tests\.csv, line 2: `a` is empty"):
        questions(path, sets=sets)


# ---- progress


def test_progress_is_told_only_where_it_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from steadyrl.tasks import patience

    assert list(patience.watched(range(5), "reading [x].jsonl")) == list(range(5))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(patience, "SECONDS_OF_SILENCE", 0.0)
    assert list(patience.watched(range(5), "reading [x].jsonl", total=5)) == list(range(5))
    assert capsys.readouterr().err == "reading [x].jsonl: 1 of 5\n"
