import json
import random
import sys
from pathlib import Path

import pytest

from steadyrl.tasks.base import TaskError
from steadyrl.tasks.questions import Questions

ROWS = [{"question": f"{n}+{n}=", "answer": str(2 * n), "work": f"twice {n} is {2 * n}"} for n in range(40)]


def write(folder: Path, rows: list) -> str:
    path = folder / "pairs.jsonl"
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


def questions(path: str, **changed: object) -> Questions:
    fields: dict = {"split": "train"}
    return Questions(**fields | {"path": path, "score": "math_verify", "held_out": 8} | changed)


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
        ([{"question": " ", "answer": 1}], "line 1: `question` must be text or a number, found ' '"),
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


def test_without_the_datasets_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TaskError, match=r"pip install steadyrl\[datasets\]"):
        questions("someone/something")


def test_the_example_recipe_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    score = "examples/score_exact.py:score"
    task = questions("examples/arithmetic.jsonl", solution_column="solution", score=score, held_out=100)
    assert (task.size("train"), task.size("held_out")) == (3900, 100)
    for index in range(3900):
        example = task.example("train", index)
        assert task.score("train", index, example.solution) == 1.0
        assert task.score("train", index, example.solution + "0") == 0.0
        assert set(example.question + example.solution) <= set("0123456789+-=")
