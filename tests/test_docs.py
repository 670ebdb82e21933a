"""The pages: their links resolve, and the tutorial runs."""

import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

from recipes_for_tests import command
from steadyrl.run.logs import read_jsonl

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
OWN_DATA = ROOT / "docs" / "tutorial.md", ROOT / "docs" / "your-data.md"
FORMS = ("own_reward", "trl_reward", "compute_score")


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
    """The folder with the files that the pages show, their data written; the recipe takes two steps instead of many."""
    monkeypatch.chdir(tmp_path)
    for page in OWN_DATA:
        text = page.read_text(encoding="utf-8")
        for name, content in re.findall(r'```\w+ title="([^"]+)"\n(.*?)```', text, re.DOTALL):
            (tmp_path / name).write_text(re.sub(r"steps = \d+", "steps = 2", content), encoding="utf-8")
    runpy.run_path("pairs.py")
    return tmp_path


def test_the_tutorial_trains(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("train", "mine.toml", "--dry-run") == 0
    assert "training pair(s) of pairs.csv left out" in capsys.readouterr().out
    few = ("--evaluate.prompts", "4", "--evaluate.samples", "4", "--task.reward", "forms.py:compute_score")
    assert command("train", "mine.toml", "--run", "runs/first", "--verifier.no-audit", *few) == 0
    assert all("reward/digits" in row for row in read_jsonl(example / "runs/first/metrics.jsonl"))
    evaluated = [row for row in read_jsonl(example / "runs/first/eval.jsonl") if row["mode"] == "sampled"]
    assert {row["set"] for row in evaluated} == {"held_out", "exam"}
    assert all("pass@4" in row for row in evaluated)
    assert command("resume", "runs/first") == 0


@pytest.mark.parametrize("function", ["reward.py:reward", *(f"forms.py:{form}" for form in FORMS)])
def test_every_reward_of_the_pages_passes_the_audit(example: Path, function: str) -> None:
    assert command("audit", "mine.toml", "--task.reward", function) == 0
