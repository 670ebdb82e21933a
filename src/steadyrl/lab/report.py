"""The page of the lab, from the stored results alone: `docs/replication.md` and its pictures."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median

from steadyrl.lab.collapse import (
    ALARM,
    FALLS,
    FALLS_BELOW,
    RISES,
    STAYS,
    WINDOW,
    alarm_step,
    limits,
)
from steadyrl.lab.figure import Figure, Measure, figures
from steadyrl.lab.result import Result, measure, results_of
from steadyrl.lab.verdict import Finding, interval, judge
from steadyrl.metrics import write_atomically

Results = Mapping[str, Sequence[Result]]

HEAD = f"""\
# Replication

<!-- Printed by `steadyrl lab report` from lab/results; edit lab/*.toml and run the arms instead. -->

The experiments of "Stabilizing Reinforcement Learning with LLMs: Formulation and Practices" (arXiv 2512.01374) at a
scale that runs on two CPU cores, with arms that the paper did not run. Every figure is a file in `lab/`: its regime,
its arms, its seeds and the rule of each verdict, committed before the arms were run. `steadyrl lab run FIGURE` makes
it anew.

- Arms of a figure share prompts, random numbers, cold start and the number of gradient updates. The mini-batch is
  fixed; the global batch grows with N, the updates made from it.
- A run has **collapsed** once its reward, averaged over {WINDOW} updates, is below {FALLS_BELOW:.2f} of its best so
  far, and stays there to the end, for at least {STAYS:.0%} of the run.
- Differences are paired by seed, with Student's 95% interval; shares of runs have Wilson's. *Replicated*: the whole
  interval lies on the claimed side. *Contradicted*: all of it lies on the other. Else *not visible here*.
- Pictures: the mean over the seeds, with a band of the middle half of them.
- D_KL under replay is lowered by definition; the column "k3, natural" is measured without replay on a subsample.
"""


def write(lab: Path, docs: Path) -> list[Path]:
    """Write the page and its pictures; the paths written."""
    from steadyrl.lab.picture import draw

    written = []
    for figure in figures(lab):
        results = results_of(lab, figure)
        if any(results[arm] for arm in figure.arms):
            path = docs / "replication" / f"{figure.name}.svg"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(figure, results, path)
            written.append(path)
    write_atomically(docs / "replication.md", page(lab))
    return [*written, docs / "replication.md"]


def page(lab: Path) -> str:
    """The page as Markdown."""
    every = [(figure, results_of(lab, figure)) for figure in figures(lab)]
    parts = [HEAD, "## Verdicts\n", _verdicts(every)]
    parts += [_section(figure, results) for figure, results in every]
    parts += ["## What announces a collapse\n", _announcements(every)]
    return "\n".join(parts)


def _verdicts(every: Iterable[tuple[Figure, Results]]) -> str:
    rows = []
    for figure, results in every:
        for claim in figure.claims:
            verdict, _ = judge(claim, results)
            rows.append((claim.id, claim.text, f"[{figure.name}](#{_anchor(figure.title)})", f"**{verdict}**"))
    rows.sort(key=lambda row: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", row[0])])
    return _table(("claim", "of the paper", "figure", "verdict"), rows)


def _section(figure: Figure, results: Results) -> str:
    runs = [run for arm in figure.arms for run in results[arm]]
    parts = [f"## {figure.title}\n"]
    if not runs:
        return "\n".join([*parts, f"Not run yet: `steadyrl lab run {figure.name}`.\n"])
    hours, machines = sum(run.seconds for run in runs) / 3600, sorted({run.machine for run in runs})
    asked = len(figure.arms) * len(figure.seeds)
    with_change = f" with `{json.dumps(figure.change, ensure_ascii=False)}`" if figure.change else ""
    parts += [
        f"Regime *{figure.regime}* (`lab/regimes/{figure.regime}.toml`){with_change}, N = {figure.minibatches}, "
        f"{figure.updates} updates, {len(runs)} of {asked} runs, {hours:.1f} core-hours ({'; '.join(machines)}). "
        f"{_regime(runs)}\n",
        f"![{figure.title}](replication/{figure.name}.svg)\n",
        _arms(figure, results),
    ]
    rows = [
        (claim.id, finding.text, finding.effect, finding.verdict + _needed(finding))
        for claim in figure.claims
        for finding in judge(claim, results)[1]
    ]
    return "\n".join([*parts, _table(("claim", "rule", "effect", "verdict"), rows)]) if rows else "\n".join(parts)


def _regime(runs: Sequence[Result]) -> str:
    """How far the engines are apart before anything has been trained."""
    first = {name: [v for run in runs if (v := run.steps.get(name, [None])[0]) is not None] for name in _FIRST}
    words = [f"{label} {fmean(first[name]):.2g}" for name, label in _FIRST.items() if first[name]]
    return f"At the first step {', '.join(words)}."


_FIRST = {
    "replay/k3_natural": "k3 of μ against π_old is",
    "routes/disagreement": "the share of expert sets that differ",
}
_COLUMNS: tuple[tuple[str, Measure, str], ...] = (
    ("T = 1", "final", ".3f"),
    ("peak", "peak", ".3f"),
    ("T = 1, unquantised", "final_native", ".3f"),
    ("greedy", "final_greedy", ".3f"),
    ("entropy", "entropy", ".3f"),
    ("k3", "kl", ".1e"),
    ("k3, natural", "kl_natural", ".1e"),
    ("sets that differ", "disagreement", ".1%"),
)


def _arms(figure: Figure, results: Results) -> str:
    """One row an arm: means over seeds, that of the first column with its interval."""
    rows = []
    for name, arm in figure.arms.items():
        runs = results[name]
        if not runs:
            rows.append((arm.label, "not run", *[""] * (len(_COLUMNS) + 1)))
            continue
        cells = [format(fmean(measure(run, what) for run in runs), form) for _, what, form in _COLUMNS]
        if len(runs) > 1:
            low, high = interval([measure(run, "final") for run in runs])
            cells[0] += f" [{max(0.0, low):.3f}, {min(1.0, high):.3f}]"
        at = [(step + 1) * run.minibatches for run in runs if (step := run.collapsed_at) is not None]
        fallen = f"{len(at)} of {len(runs)}" + (f", at update {median(at):.0f}" if at else "")
        rows.append((arm.label, str(len(runs)), fallen, *cells))
    return _table(("arm", "runs", "collapsed", *(title for title, _, _ in _COLUMNS)), rows)


def _needed(finding: Finding) -> str:
    if finding.seeds_needed is None:
        return ""
    return f" (an effect of this size would take about {finding.seeds_needed} seeds)"


def _announcements(every: Sequence[tuple[Figure, Results]]) -> str:
    """How many updates before the collapse each quantity left the range of the stable runs of its figure."""
    leads: dict[str, list[int | None]] = {name: [] for name in (*RISES, *FALLS)}
    false: dict[str, list[bool]] = {name: [] for name in leads}
    for figure, results in every:
        runs = [run for arm in figure.arms for run in results[arm]]
        stable = [run for run in runs if run.collapsed_at is None]
        for name, limit in limits([run.steps for run in stable]).items():
            for run in (run for run in runs if name in run.steps):
                at = alarm_step(run.steps[name], limit, rises=name in RISES)
                fallen = run.collapsed_at
                if fallen is None:
                    false[name].append(at is not None)
                else:
                    leads[name].append(None if at is None or at > fallen else (fallen - at) * run.minibatches)
    rows = []
    for name, found in leads.items():
        early = [lead for lead in found if lead is not None]
        if found:
            lead = f"{median(early):.0f}" if early else "–"
            rows.append(
                (f"`{name}`", f"{len(early)} of {len(found)}", lead, f"{sum(false[name])} of {len(false[name])}")
            )
    if not rows:
        return "No run has collapsed yet beside stable ones.\n"
    words = (
        f"An alarm is two steps in a row beyond the {ALARM:.0%} quantile of the figure's stable runs. Lead: updates "
        "from the alarm to the collapse.\n"
    )
    head = ("quantity", "collapses announced", "median lead, updates", "stable runs with an alarm")
    return "\n".join([words, _table(head, rows)])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _anchor(title: str) -> str:
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")
