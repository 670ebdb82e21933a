import json
import math
import os
from pathlib import Path

import pytest

from steadyrl.run.logs import MetricsLog, read_jsonl


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_lines_come_back(path: Path) -> None:
    log = MetricsLog(path)
    log.log(1, {"reward/mean": 0.25, "reward/failures": 0})
    log.log(2, {"reward/mean": 0.5})
    assert read_jsonl(path) == [
        {"step": 1, "reward/mean": 0.25, "reward/failures": 0},
        {"step": 2, "reward/mean": 0.5},
    ]


def test_unknown_names_are_refused(path: Path) -> None:
    log = MetricsLog(path)
    with pytest.raises(ValueError, match="unknown response/lenght"):
        log.log(1, {"reward/mean": 1.0, "response/lenght": 1.0})
    with pytest.raises(ValueError, match="unknown accuracy"):
        log.log(1, {"accuracy": 1.0})
    evaluations = path.with_name("eval.jsonl")
    MetricsLog(evaluations).log(1, {"accuracy": 1.0})
    assert read_jsonl(evaluations) == [{"step": 1, "accuracy": 1.0}]


def test_only_plain_values(path: Path) -> None:
    with pytest.raises(TypeError, match="reward/mean is a list"):
        MetricsLog(path).log(1, {"reward/mean": [1.0]})  # type: ignore[dict-item]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_say_is_null(path: Path, value: float) -> None:
    MetricsLog(path).log(1, {"mismatch/k1": value})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {"step": 1, "mismatch/k1": None}


@pytest.mark.parametrize("torn", ["{", '{"step": 2, "reward/mean": 0.', '{"step": 2, "reward/mean": 0.5}'])
def test_a_torn_last_line_is_left_out_and_the_next_line_starts_clean(path: Path, torn: str) -> None:
    path.write_text('{"step": 1}\n' + torn)
    held = [{"step": 1}, {"step": 2, "reward/mean": 0.5}][: 1 + torn.endswith("}")]
    assert read_jsonl(path) == held
    MetricsLog(path).log(3, {})
    assert read_jsonl(path) == [*held, {"step": 3}]


@pytest.mark.parametrize("bad", ['{"step": 2, "rew', "[1]", '{"reward/mean": 1.0}', "\xff"])
def test_a_malformed_line_elsewhere_is_an_error(path: Path, bad: str) -> None:
    path.write_bytes(b'{"step": 1}\n' + bad.encode("latin-1") + b'\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is not"):
        read_jsonl(path)


def test_truncate_drops_later_steps(path: Path) -> None:
    log = MetricsLog(path)
    for step in (1, 2, 2, 3):
        log.log(step, {"reward/mean": step / 3})
    log.truncate(2)
    assert [row["step"] for row in read_jsonl(path)] == [1, 2, 2]
    assert read_jsonl(path)[0]["reward/mean"] == 1 / 3
    log.log(3, {})
    assert [row["step"] for row in read_jsonl(path)] == [1, 2, 2, 3]


def test_truncate_is_atomic(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsLog(path)
    log.log(1, {})
    log.log(2, {})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        log.truncate(1)
    assert [row["step"] for row in read_jsonl(path)] == [1, 2]


@pytest.mark.parametrize(("sync", "times"), [(True, 1), (False, 0)])
def test_the_disk_has_a_line_before_log_returns(sync: bool, times: int, path: Path, monkeypatch) -> None:
    log, synced = MetricsLog(path), []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(path.read_bytes()))
    log.log(1, {"reward/mean": 0.5}, sync=sync)
    assert [b'"step": 1' in text for text in synced] == [True] * times
