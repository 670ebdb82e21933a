import subprocess
import sys
from pathlib import Path

from steadyrl.measure.glossary import METRICS, docs

ROOT = Path(__file__).parents[2]


def test_docs_are_the_committed_page() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert page == docs(), "run: python -m steadyrl.measure.glossary > docs/metrics.md"


def test_every_name_is_documented_once() -> None:
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))
    assert all(metric.doc.endswith(".") and metric.unit for metric in METRICS)
    lines = docs().splitlines()
    prefixes = [line for line in lines if line.startswith("### ")]
    assert len(prefixes) == len(set(prefixes)), "METRICS is not grouped by prefix"
    columns = {line.replace("\\|", "").count("|") for line in lines if line.startswith("|")}
    assert columns == {4}


def test_importing_metrics_is_cheap() -> None:
    code = "import steadyrl.measure.glossary, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
