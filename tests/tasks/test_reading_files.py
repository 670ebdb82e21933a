"""Files are read by their ending, values stay as written, and one error tells of every bad row."""

import datetime
import decimal
import gzip
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyrl.tasks.base import Example, TaskError
from steadyrl.tasks.files import KNOWN
from steadyrl.tasks.pairs import Columns, Pairs, read_pairs
from steadyrl.tasks.sources import read_source

ROWS = [{"question": f"Q {n}", "answer": f"{n}.50"} for n in range(6)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TABLE = "question,answer\n" + "".join(f"{row['question']},{row['answer']}\n" for row in ROWS)


def read(path: str | Path, **changed: Any) -> Pairs:
    columns = Columns(**{"question": "question", "answer": "answer", "solution": None} | changed)
    name, rows = read_source(str(path), subset=None, split="train")
    return read_pairs(name, rows, columns)


def read_text(tmp_path: Path, name: str, text: str | bytes, **changed: Any) -> Pairs:
    path = tmp_path / name
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if name.lower().endswith(".gz") else data)
    return read(path, **changed)


def parquet(path: Path, columns: dict[str, Any]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path)
    return path


def answers(pairs: Pairs) -> list[str]:
    return [pair.answer for pair in pairs.examples]


def reasons(pairs: Pairs) -> dict[str, str]:
    """What is wrong, by the last word of the place: the number of the line or row."""
    return {place.rpartition(" ")[2]: reason for place, reason in pairs.faults.items()}


# ---- which file is read how


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", LINES),
        ("a.JSONL", LINES),
        ("a.ndjson", LINES),
        ("a.v2.jsonl", LINES),
        ("a.jsonl.gz", LINES),
        ("a.JSONL.GZ", LINES),
        ("a.json", json.dumps(ROWS)),
        ("a.json", json.dumps(ROWS, indent=2)),
        ("a.json", LINES),
        ("a.json.gz", json.dumps(ROWS)),
        ("a.csv", TABLE),
        ("a.CSV", TABLE.replace("\n", "\r\n")),
        ("a.csv", "\n" + TABLE.replace("\n", "\n\n")),
        ("a.csv.gz", TABLE),
        ("a.tsv", TABLE.replace(",", "\t")),
        ("a.jsonl", "\ufeff" + LINES),
        ("a.csv", "\ufeff" + TABLE),
        ("a.json", "\ufeff" + json.dumps(ROWS)),
        ("a.jsonl", LINES.rstrip("\n")),
        ("a.jsonl", LINES.replace("\n", "\r\n\r\n")),
    ],
)
def test_an_existing_file_is_read_by_its_ending(tmp_path: Path, name: str, text: str) -> None:
    pairs = read_text(tmp_path, name, text)
    assert [(pair.question, pair.answer) for pair in pairs.examples] == [(r["question"], r["answer"]) for r in ROWS]
    assert not pairs.faults


@pytest.mark.parametrize("name", ["a.parquet", "a.PARQUET", "a.parquet.gz"])
def test_parquet_is_read_packed_or_not(tmp_path: Path, name: str) -> None:
    columns = {key: [row[key] for row in ROWS] for key in ROWS[0]}
    data = parquet(tmp_path / "x", columns).read_bytes()
    assert answers(read_text(tmp_path, name, data)) == [row["answer"] for row in ROWS]


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.jsonl").write_text(LINES)
    assert answers(read("~/a.jsonl")) == [row["answer"] for row in ROWS]


@pytest.mark.parametrize("name", ["a.txt", "a", "a.xlsx", "a.jsonl.zip", "a.gz", "jsonl", ".jsonl.bak"])
def test_an_unknown_ending_is_rejected_with_the_known_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(TaskError, match="the ending of this file is not known") as caught:
        read_text(tmp_path, name, LINES)
    assert KNOWN in str(caught.value)


@pytest.mark.parametrize(
    "path", ["a.jsonl", "data/a.csv", "./a.parquet", "../a", "/nowhere/a", "~/nothing", "x/y/z", "here/a.txt"]
)
def test_a_file_that_does_not_exist_is_not_asked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(TaskError, match="there is no such file"):
        read(path)


@pytest.mark.parametrize("path", ["", "  ", "a\0.jsonl", "~nobody-of-this-name/a.jsonl", "x" * 5000, "/dev/null"])
def test_what_is_no_path_is_one_sentence(path: str) -> None:
    with pytest.raises(TaskError, match=r"task\.path = |no such file") as caught:
        read(path)
    assert len(str(caught.value)) < 300


# ---- values stay as they are written


@pytest.mark.parametrize(
    "written",
    [
        "7",
        "-0",
        "1.50",
        "1e5",
        "1E+5",
        "0.00001",
        "-0.0",
        "123456789012345678901234567890",
        "9007199254740993.0",
        "1e-400",
    ],
)
def test_a_json_number_keeps_its_digits(tmp_path: Path, written: str) -> None:
    line = f'{{"question": "q", "answer": {written}}}'
    assert answers(read_text(tmp_path, "a.jsonl", line)) == [written]
    assert answers(read_text(tmp_path, "a.json", f"[{line}]")) == [written]


@pytest.mark.parametrize(
    "text", ["007", "1.50", "NA", "nan", "None", "true", "1e5", "2024-01-01", "1,000", "a;b", "=1"]
)
def test_a_csv_value_is_text(tmp_path: Path, text: str) -> None:
    quoted = f'"{text}"' if "," in text else text
    assert answers(read_text(tmp_path, "a.csv", f"question,answer\nq,{quoted}\n")) == [text]


def test_a_quoted_csv_value_may_hold_lines_quotes_and_much(tmp_path: Path) -> None:
    text = 'question,answer\n"one\ntwo, ""three""",4\n"' + "long " * 40_000 + '",5\n'
    pairs = read_text(tmp_path, "a.csv", text)
    assert pairs.examples[0].question == 'one\ntwo, "three"'
    assert len(pairs.examples[1].question) == 200_000
    assert [pair.place.rpartition(", ")[2] for pair in pairs.examples] == ["line 2", "line 4"]


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([7, -3], ["7", "-3"]),
        ([2**62, 0], [str(2**62), "0"]),
        ([0.00001, 1e22], ["0.00001", "10000000000000000000000"]),
        ([1.5, 3.0], ["1.5", "3.0"]),
        ([decimal.Decimal("1.50"), decimal.Decimal("0.01")], ["1.50", "0.01"]),
        ([datetime.date(2024, 1, 31), datetime.date(1, 1, 1)], ["2024-01-31", "0001-01-01"]),
        ([datetime.datetime(2024, 1, 31, 12)] * 2, ["2024-01-31 12:00:00"] * 2),
        ([b"seven", "µ".encode()], ["seven", "µ"]),
        (["007", "NA"], ["007", "NA"]),
    ],
)
def test_a_parquet_value_becomes_its_text(tmp_path: Path, values: list, texts: list[str]) -> None:
    pairs = read(parquet(tmp_path / "a.parquet", {"question": ["a", "b"], "answer": values}))
    assert answers(pairs) == texts
    json.dumps([pair.row for pair in pairs.examples], allow_nan=False)


def test_small_floats_of_parquet_keep_their_shortest_digits(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    single = pyarrow.array([0.1, 3.0, 1e-5], pyarrow.float32())
    inner = pyarrow.array([{"x": 0.1}] * 3, pyarrow.struct([("x", pyarrow.float32())]))
    path = parquet(tmp_path / "a.parquet", {"question": ["a", "b", "c"], "answer": single, "more": inner})
    assert answers(read(path)) == ["0.1", "3.0", "0.00001"]
    assert answers(read(path, answer="more.x")) == ["0.1"] * 3
    fixed = pyarrow.array([[0.1, 0.2]] * 3, pyarrow.list_(pyarrow.float32(), 2))
    maps = pyarrow.array([[("x", 0.1)]] * 3, pyarrow.map_(pyarrow.string(), pyarrow.float32()))
    encoded = single.dictionary_encode()
    path = parquet(
        tmp_path / "b.parquet", {"question": ["a", "b", "c"], "answer": fixed, "map": maps, "encoded": encoded}
    )
    assert [pair.accepted for pair in read(path).examples] == [("0.1", "0.2")] * 3
    assert answers(read(path, answer="map.x")) == ["0.1"] * 3
    assert answers(read(path, answer="encoded")) == ["0.1", "3.0", "0.00001"]


def test_a_map_of_parquet_is_an_object_and_has_no_key_twice(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    maps = pyarrow.array([[("x", "1")], [("x", "2"), ("x", "3")]], pyarrow.map_(pyarrow.string(), pyarrow.string()))
    pairs = read(parquet(tmp_path / "a.parquet", {"question": ["a", "b"], "more": maps}), answer="more.x")
    assert answers(pairs) == ["1"]
    assert pairs.examples[0].row["more"] == {"x": "1"}
    assert list(pairs.faults.values()) == ["holds a map that has a key twice"]


USABLE = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Z"], exclude_characters="\u200b\u2060\ufeff"), min_size=1
)


@given(st.lists(st.tuples(USABLE, USABLE), min_size=1, max_size=5))
def test_text_comes_back_from_every_format(tmp_path_factory: pytest.TempPathFactory, pairs: list) -> None:
    import csv

    folder = tmp_path_factory.mktemp("formats")
    rows = [{"question": question, "answer": answer} for question, answer in pairs]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "b.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    (folder / "c.json").write_text(json.dumps(rows, indent=1))
    with (folder / "d.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("question", "answer"), *pairs])
    parquet(folder / "e.parquet", {key: [row[key] for row in rows] for key in rows[0]})
    for path in sorted(folder.iterdir()):
        assert [(pair.question, pair.answer) for pair in read(path).examples] == pairs, path.name


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_comes_back_from_json_as_python_writes_it(number: float) -> None:
    from steadyrl.tasks.values import parse_object, plain, text_of

    row = parse_object(json.dumps({"x": number}))
    assert text_of(row["x"]) == json.dumps(number)
    assert plain(row) == {"x": number}
    if isinstance(number, float):
        assert float(text_of(number)) == number
        assert "e" not in text_of(number)
        assert math.copysign(1, float(text_of(number))) == math.copysign(1, number)


# ---- every bad row is found in one pass


def test_one_error_lists_every_kind_of_bad_row(tmp_path: Path) -> None:
    good = '{"question": "q", "answer": 1}'
    bad = {
        '{"question": "q",': "is not JSON",
        "[1, 2]": "is not a JSON object but list: [1, 2]",
        '{"question": "q"}': "has no field `answer`; it has `question`",
        '{"question": " \\n", "answer": 1}': "`question` is empty, found ' \\n'",
        '{"question": "\\u200b", "answer": 1}': "`question` is empty, found",
        '{"question": "q", "answer": null}': "`answer` must be text or a number, found None",
        '{"question": "q", "answer": true}': "`answer` must be text or a number, found True",
        '{"question": "q", "answer": {"x": 1}}': "`answer` must be text or a number, found {'x': 1}",
        '{"question": "q", "answer": []}': "`answer` is an empty list",
        '{"question": "q", "answer": [["a"]]}': "`answer` must be text or a number, found ['a']",
        '{"question": "half \\ud83d", "answer": 1}': "`question` holds half of a surrogate pair",
        '{"question": "q", "answer": "\\ude00"}': "`answer` holds half of a surrogate pair",
        '{"question": "a\\u0000b", "answer": 1}': "`question` holds a NUL character",
        '{"question": "q", "answer": NaN}': "is not JSON: NaN is not a number",
        '{"question": "q", "answer": 1, "x": [-Infinity]}': "is not JSON: -Infinity is not a number",
        '{"question": "q", "answer": 1e999}': "holds the number 1e999, which is too large",
        '{"question": "q", "answer": ' + "7" * 5000 + "}": "holds a number of 5,000 characters; at most 1,000",
        '{"question": "q", "answer": 0.' + "7" * 5000 + "}": "holds a number of 5,002 characters",
        '{"question": "q", "answer": ' + "[" * 5000 + "]" * 5000 + "}": "is nested more than 100 levels deep",
        '{"question": "q", "x": ' + '{"a":' * 150 + "1" + "}" * 151: "is nested more than 100 levels deep",
        "[" * 100_000: "is nested more than 100 levels deep",
        '{"question": "q", "answer": 1, "answer": 2}': "holds the field 'answer' twice",
        '{"question": "q", "answer": 1} {}': "is not JSON: Extra data",
        '{"question": "' + "x" * 4_000_001 + '", "answer": 1}': "`question` has 4,000,001 characters",
    }
    lines = [line for one in bad for line in (one, good)]
    pairs = read_text(tmp_path, "a.jsonl", "\n".join(lines))
    assert len(pairs.examples) == len(bad)
    assert list(reasons(pairs)) == [str(2 * n + 1) for n in range(len(bad))]
    for found, expected in zip(pairs.faults.values(), bad.values(), strict=True):
        assert found.startswith(expected)
    with pytest.raises(TaskError) as caught:
        pairs.require_good(skip=False)
    message = str(caught.value).splitlines()
    assert "24 of the 48 rows of " in message[0]
    assert "task.skip_bad_rows = true" in message[0]
    assert "a.jsonl, line 1 is not JSON" in message[1]
    assert "a.jsonl, line 7: `question` is empty" in message[4]
    assert message[11:] == ["  … and 14 more"]
    assert all(len(line) < 400 for line in message)
    pairs.require_good(skip=True)
    # the same elements of one JSON list, each with the line on which it begins; some would end the list early
    listed = [
        one for one in bad if not one.startswith(('{"question": "q",\n', "[[")) and one.count("{") == one.count("}")
    ]
    again = read_text(tmp_path, "a.json", "[\n" + ",\n".join(listed) + "\n]")
    assert list(reasons(again)) == [str(n + 2) for n in range(len(listed))]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path: Path, name: str) -> None:
    text = {"a.jsonl": LINES, "a.csv": TABLE, "a.json": "[" + LINES.rstrip("\n").replace("\n", ",\n") + "]"}[name]
    pairs = read_text(tmp_path, name, text.encode().replace(b"Q 2", b"Q \xff2"))
    assert reasons(pairs) == {"4" if name == "a.csv" else "3": "is not UTF-8"}
    assert len(pairs.examples) == 5


def test_csv_rows_of_the_wrong_width_and_bad_quotes_are_named_by_line(tmp_path: Path) -> None:
    pairs = read_text(tmp_path, "a.csv", 'question,answer\na,1\nb\nc,2,3\n"d\nd",\n"e"x,4\nf,5\n')
    assert answers(pairs) == ["1", "5"]
    found = reasons(pairs)
    assert found["3"] == "has 1 values, but the header has 2 columns"
    assert found["4"] == "has 3 values, but the header has 2 columns"
    assert found["5"].startswith("`answer` is empty, found ''")
    assert found["7"].startswith("is not CSV: ")


def test_rows_of_parquet_that_cannot_be_used_are_numbered_as_pandas_does(tmp_path: Path) -> None:
    values = [1.0, float("nan"), None, float("inf"), 2.5]
    pairs = read(parquet(tmp_path / "a.parquet", {"question": list("abcde"), "answer": values}))
    assert answers(pairs) == ["1.0", "2.5"]
    assert reasons(pairs) == {
        "1": "`answer` is not a finite number but nan",
        "2": "`answer` must be text or a number, found None",
        "3": "`answer` is not a finite number but inf",
    }
    binary = read(parquet(tmp_path / "b.parquet", {"question": ["a", "b"], "answer": [b"ok", b"\xff\xfe"]}))
    assert reasons(binary) == {"1": "`answer` is 2 bytes that are not UTF-8 text"}


def test_a_column_that_no_row_has_is_told_once(tmp_path: Path) -> None:
    with pytest.raises(TaskError) as caught:
        read_text(tmp_path, "a.csv", TABLE, answer="answr").require_good(skip=True)
    assert "line 2 has no field `answr`; it has `question`, `answer`" in str(caught.value)
    assert str(caught.value).endswith("… and 5 more, all alike")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b"", "holds no question/answer pairs"),
        ("a.jsonl", b"\n \n", "holds no question/answer pairs"),
        ("a.json", b"[]", "holds no question/answer pairs"),
        ("a.csv", b"", "holds no question/answer pairs"),
        ("a.csv", b"question,answer\n", "holds no question/answer pairs"),
        ("a.jsonl", LINES.encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("a.csv", TABLE.encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("a.jsonl", gzip.compress(LINES.encode()), "is gzipped; give it a name that ends in .gz"),
        ("a.json", json.dumps(ROWS)[:-5].encode(), "is not JSON: the list is never closed"),
        ("a.json", json.dumps(ROWS)[:-3].encode(), "is not JSON: the list is never closed"),
        ("a.json", (json.dumps(ROWS) + "]").encode(), "is not JSON: something follows the list"),
        ("a.json", json.dumps({"data": ROWS}, indent=1).encode(), "is one JSON object; it must be a list of objects"),
        ("a.csv", b'question,answer\na,1\n"b,2\nc,3\n', "line 3: a quote is opened and never closed"),
        ("a.csv", b"question;answer\na;1\n", "is separated by ';'; a .csv file needs commas"),
        ("a.csv", b"question,answer,answer\na,1,2\n", "the header names the column 'answer' twice"),
        ("a.csv", b"question,answ\xffer\na,1\n", "the header is not UTF-8"),
        ("a.parquet", b"PAR1 and no more", "cannot read"),
    ],
)
def test_a_file_that_is_damaged_as_a_whole_is_rejected(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(TaskError) as caught:
        read(tmp_path / name).require_good(skip=True)
    assert message in str(caught.value)


@pytest.mark.parametrize("data", [gzip.compress(LINES.encode() * 50)[:-20], b"plain text", b""])
def test_a_damaged_gz_file_is_one_sentence(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(data)
    with pytest.raises(TaskError, match=r"a\.jsonl\.gz"):
        read(tmp_path / "a.jsonl.gz").require_good(skip=True)


def test_a_file_without_permission_and_a_broken_link_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "gone")
    with pytest.raises(TaskError, match="no such file"):
        read(tmp_path / "a.jsonl")


# ---- what a row may hold


def example(row: Any, **changed: Any) -> Example:
    from steadyrl.tasks.pairs import to_example

    return to_example(row, Columns(**{"question": "prompt", "answer": "answer", "solution": None} | changed))


CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]


def test_rows_of_chat_data_keep_their_messages() -> None:
    row = {"prompt": CHAT, "reward_model": {"ground_truth": ["2", "2.0", "2"], "style": "rule"}, "level": 3}
    found = example(row, answer="reward_model.ground_truth")
    assert (found.question, found.answer, found.solution) == ("1+1?", "2", "2")
    assert found.accepted == ("2", "2.0")
    assert found.messages == tuple(CHAT)
    assert found.row == row


def test_content_in_parts_is_joined_and_fields_without_a_value_are_left_out() -> None:
    parts = [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]
    talk = [
        {"role": "user", "content": "hello", "name": "Ann", "weight": None},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": parts, "name": None},
    ]
    found = example({"prompt": talk, "answer": ["2"]})
    assert found.messages == (
        {"role": "user", "content": "hello", "name": "Ann"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "1+1?"},
    )
    assert (found.question, found.answer, found.accepted) == ("1+1?", "2", ())


@pytest.mark.parametrize(
    ("talk", "message"),
    [
        ([], "holds no message of the user"),
        ([{"role": "system", "content": "x"}], "holds no message of the user"),
        ([*CHAT, {"role": "assistant", "content": "2"}], "ends with a message of the assistant"),
        ([*CHAT, {"role": "system", "content": "2"}], "ends with a message of the system"),
        ([{"role": "human", "content": "x"}], "message 1 has the role 'human'; known: system, "),
        ([{"role": ["user"], "content": "x"}], "message 1 has the role ['user']"),
        ([{"from": "human", "value": "x"}], "message 1 must have `role` and `content`"),
        (["hello"], "message 1 must have `role` and `content`, found 'hello'"),
        ([{"role": "user", "content": " "}], "message 1 is empty, found ' '"),
        ([{"role": "user", "content": None}], "message 1 must be text"),
        ([{"role": "user", "content": "\ud83d"}], "message 1 holds half of a surrogate pair"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "message 1 has a part that is not text"),
        ([{"role": "user", "content": "x", "tool_calls": [1]}], "message 1 must be text or a number, found [1]"),
    ],
)
def test_a_conversation_that_cannot_be_continued_is_rejected(talk: list, message: str) -> None:
    with pytest.raises(ValueError, match="`prompt` ") as caught:
        example({"prompt": talk, "answer": 1})
    assert message in str(caught.value)


def test_dotted_fields_prefer_a_column_of_exactly_that_name() -> None:
    row = {"prompt": "q", "a": {"b": {"c": "inner"}, "b.c": "half"}, "a.b": {"c": "other"}, "a.b.c": "flat"}
    assert example(row, answer="a.b.c").answer == "flat"
    del row["a.b.c"]
    assert example(row, answer="a.b.c").answer == "half"
    del row["a"]["b.c"]
    assert example(row, answer="a.b.c").answer == "inner"
    del row["a"]
    assert example(row, answer="a.b.c").answer == "other"
    for name in ("a.b.x", "a.c", ".", "a.", ".a", "prompt.x", "a.b.c.d"):
        with pytest.raises(ValueError, match="has no field"):
            example(row, answer=name)


def test_verl_rows_come_from_parquet_too(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "a.parquet",
        {"prompt": [CHAT, CHAT[1:]], "reward_model": [{"ground_truth": ["2", "2.0"]}, {"ground_truth": ["3"]}]},
    )
    first, second = read(path, question="prompt", answer="reward_model.ground_truth").examples
    assert first.messages == tuple(CHAT)
    assert (first.accepted, second.answer, second.accepted) == (("2", "2.0"), "3", ())


def test_columns_that_are_not_plain_values_are_not_passed_on(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", {"question": ["q"], "answer": [1], "picture": [b"\xff\xd8"], "hint": ["h"]})
    assert read(path).examples[0].row == {"question": "q", "answer": 1, "hint": "h"}


def test_floats_in_other_columns_are_floats(tmp_path: Path) -> None:
    row = read_text(tmp_path, "a.jsonl", '{"question": "q", "answer": 1.50, "level": 0.5}').examples[0].row
    assert row == {"question": "q", "answer": 1.5, "level": 0.5}
    assert {type(value) for value in row.values()} == {str, float}


# ---- speed


@pytest.mark.parametrize("count", [2_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_many_rows_are_read_quickly(tmp_path: Path, count: int) -> None:
    words = " ".join(f"word{n % 71}" for n in range(100))
    lines = (json.dumps({"question": f"{n} {words}", "answer": n, "level": n / 7}) + "\n" for n in range(count))
    (tmp_path / "a.jsonl").write_text("".join(lines))
    started = time.process_time()
    pairs = read(tmp_path / "a.jsonl")
    assert time.process_time() - started < 1 + count / 5_000
    assert len(pairs.examples) == count
