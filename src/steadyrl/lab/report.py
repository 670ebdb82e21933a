"""The page of the lab, from the stored results alone: `docs/replication.md` and its pictures."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median

from steadyrl.lab.alarm import AROUND, QUANTILE, SIGNS, around, record
from steadyrl.lab.collapse import FALLS_BELOW, STAYS, WINDOW
from steadyrl.lab.figure import Claim, Figure, Measure, cold_recipe, figures
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
  far, and stays there to the end, for at least {STAYS:.0%} of the run and two steps. (The two steps were asked for
  after figures 1 and 4 had been run: one run of figure 4 in *long* fell in its very last step, which tells nothing.)
- Differences are paired by seed, with Student's 95% interval; shares of runs have Wilson's. *Replicated*: the whole
  interval lies on the claimed side. *Contradicted*: all of it lies on the other. Else *not visible here*. A claim is
  replicated if all its rules are, and contradicted if one is; by chance alone, one of k true rules about differences
  is in up to k · 2.5% of all cases.
- A claim about what saves a run, or fails to, is *not visible* where the arm without clip and replay does not collapse
  in most runs: there was nothing to be saved from.
- A collapse *shows* if around it the entropy is below, or the divergence above, that of every stable run of the
  figure at the same updates. This rule and the one before it replaced looser ones after both pictures of figure 4 in
  *calm* had been drawn: the first version of "shows" fired on stable runs as often as on collapses.
- A verdict is about this scale: *contradicted* says that the effect does not appear here, not that the paper is wrong.
- The learning rate of a regime was chosen by MiniRL alone, on two of the seeds that are judged here.
- A run that stopped over updates that were not finite has collapsed, and its final accuracy counts as 0.
- Pictures: the mean over the seeds, with a band of the middle half of them.
- D_KL under replay is lowered by definition. "k3, natural" is without it: for R3, k3 times the ratio of both over the
  responses that were scored both ways, one prompt's at every step.
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
    docs.mkdir(parents=True, exist_ok=True)
    write_atomically(docs / "replication.md", page(lab))
    return [*written, docs / "replication.md"]


def page(lab: Path) -> str:
    """The page as Markdown."""
    every = [(figure, results_of(lab, figure)) for figure in figures(lab)]
    parts = [HEAD, "## Verdicts\n", _verdicts(every)]
    parts += [_section(lab, figure, results) for figure, results in every]
    parts += ["## What announces a collapse\n", _announcements(every)]
    return "\n".join(parts)


def _verdicts(every: Iterable[tuple[Figure, Results]]) -> str:
    rows = []
    for figure, results in every:
        for claim in figure.claims:
            verdict, _ = judge(claim, results)
            link = f"[{figure.name}](#{_anchor(figure.title)})"
            rows.append((claim.id, claim.text, link, f"**{verdict}**{_unfinished(figure, claim, results)}"))
    rows.sort(key=lambda row: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", row[0])])
    return _table(("claim", "of the paper", "figure", "verdict"), rows)


def _unfinished(figure: Figure, claim: Claim, results: Results) -> str:
    """How many of its runs a verdict rests on, where they are not all there yet."""
    arms = {arm for arm in claim.arms if "/" not in arm} or set(figure.arms)
    have, asked = sum(len(results[arm]) for arm in arms), len(arms) * len(figure.seeds)
    return f", on {have} of {asked} runs" if 0 < have < asked else ""


def _section(lab: Path, figure: Figure, results: Results) -> str:
    runs = [run for arm in figure.arms for run in results[arm]]
    parts = [f"## {figure.title}\n"]
    if not runs:
        return "\n".join([*parts, f"Not run yet: `steadyrl lab run {figure.name}`.\n"])
    hours, machines = sum(run.seconds for run in runs) / 3600, sorted({run.machine for run in runs})
    asked = len(figure.arms) * len(figure.seeds)
    with_change = f" with `{json.dumps(figure.change, ensure_ascii=False)}`" if figure.change else ""
    parts += [
        f"Regime *{figure.regime}* (`lab/regimes/{figure.regime}.toml`){with_change}, N = {figure.minibatches}, "
        f"{figure.updates} updates, {len(runs)} of {asked} runs, {hours:.1f} core-hours of steps "
        f"({'; '.join(machines)}). {_regime(runs)}{_missed(lab, figure, results)}\n",
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
    natural = [run for run in runs if run.replay != "R3"] or runs
    k3 = fmean(run.steps["mismatch/k3"][0] or 0.0 for run in natural)
    words = f"At the first step k3 of μ against π_old is {k3:.2g}"
    apart = [value for run in natural if (value := run.steps.get("routes/disagreement", [None])[0]) is not None]
    return f"{words}, the share of expert sets that differ {fmean(apart):.2g}." if apart else f"{words}."


MISSED = 0.05
"""A cold start that ends this far below the accuracy it was to stop at has missed it."""


def _missed(lab: Path, figure: Figure, results: Results) -> str:
    """Which cold starts ran out of steps before they reached their mark."""
    found: dict[tuple[int, float], float] = {}
    for arm in figure.arms:
        for run in results[arm]:
            options = cold_recipe(lab, figure, arm, run.seed).cold_start
            first = run.accuracy()[0][1]
            if options is not None and first < options.stop_at - MISSED:
                found.setdefault((run.seed, options.stop_at), first)
    if not found:
        return ""
    words = ", ".join(f"that of seed {seed} ended at {first:.3f}" for (seed, _), first in found.items())
    return f" Cold starts that did not reach their mark of {next(iter(found))[1]}: {words}."


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
    """How each quantity did as an alarm, and where it stood around the collapses."""
    runs = [[run for arm in figure.arms for run in results[arm]] for figure, results in every]
    runs = [figure for figure in runs if any(run.collapsed_at is not None for run in figure)]
    if not runs:
        return "No run has collapsed yet.\n"
    alarms, courses = [], []
    stable = [run for figure in runs for run in figure if run.collapsed_at is None]
    for name, way in SIGNS:
        leads, false = record(runs, name, way)
        early = [lead for lead in leads if lead is not None]
        cells = (f"{len(early)} of {len(leads)}", f"{median(early):.0f}" if early else "–")
        alarms.append((f"`{name}` {way}", *cells, f"{sum(false)} of {len(false)}"))
    for name in dict.fromkeys(name for name, _ in SIGNS):
        usual = [v for run in stable for v in run.steps.get(name, ()) if v is not None]
        course = [median(usual) if usual else None, *around((run for figure in runs for run in figure), name)]
        courses.append((f"`{name}`", *("–" if value is None else f"{value:.2g}" for value in course)))
    words = (
        f"Of the figures in which a run collapsed. An alarm is two steps in a row beyond the {QUANTILE:.0%} quantile "
        "of the figure's stable runs with other seeds. Lead: updates from the second of the two to the collapse; an "
        "alarm at the collapse or after it announces nothing.\n"
    )
    head = ("quantity", "collapses announced", "median lead, updates", "stable runs with an alarm")
    about = f"The same quantities around the collapses, in windows of {WINDOW} updates: medians over the runs.\n"
    places = {-1: "the window before", 0: "from the collapse on"}
    titles = [places.get(place, f"{place * WINDOW:+d} updates") for place in AROUND]
    return "\n".join([words, _table(head, alarms), about, _table(("quantity", "stable runs", *titles), courses)])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _anchor(title: str) -> str:
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")
