"""The pages: their links resolve, and the example for owners of data runs."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from recipes_for_tests import command
from steadyrl.run.logs import read_jsonl

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
OWN_DATA = ROOT / "docs" / "your-data.md"


def heading_names(page: Path) -> set[str]:
    """What links to the headings of a page end in."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> Iterator[str]:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        if link.startswith("https://"):
            continue
        if not target.exists() or (heading and heading not in heading_names(target)):
            yield link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    assert list(broken_links(page)) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A title\n[a](page.md#a-title) [b](#no-title) [c](absent.md) [d](https://example.org)\n")
    assert list(broken_links(page)) == ["#no-title", "absent.md"]


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with the four files that the page shows."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```(\w+)\n(.*?)```", OWN_DATA.read_text(encoding="utf-8"), re.DOTALL)
    assert [language for language, _ in blocks] == ["csv", "csv", "python", "toml"]
    for name, (_, content) in zip(("pairs.csv", "exam.csv", "reward.py", "mine.toml"), blocks, strict=True):
        (tmp_path / name).write_text(content, encoding="utf-8")
    return tmp_path


def test_the_example_of_own_data_trains(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("train", "mine.toml", "--dry-run") == 0
    assert "1 training pair(s) of pairs.csv left out" in capsys.readouterr().out
    assert command("train", "mine.toml", "--run", "runs/mine", "--verifier.no-audit") == 0
    assert all("reward/digits" in row for row in read_jsonl(example / "runs/mine/metrics.jsonl"))
    evaluated = [row for row in read_jsonl(example / "runs/mine/eval.jsonl") if row["mode"] == "sampled"]
    assert {row["set"] for row in evaluated} == {"held_out", "exam"}
    assert all("pass@4" in row for row in evaluated)
    assert command("resume", "runs/mine") == 0


@pytest.mark.parametrize("form", ["own_reward", "trl_reward", "compute_score"])
def test_every_form_of_the_example_passes_the_audit(example: Path, form: str) -> None:
    assert command("audit", "mine.toml", "--task.reward", f"reward.py:{form}") == 0
