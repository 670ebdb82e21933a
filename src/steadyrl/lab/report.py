"""The page of the lab, from the stored results alone: `docs/replication.md` and its pictures."""

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median

from steadyrl.lab.alarm import AROUND, QUANTILE, SIGNS, around, record
from steadyrl.lab.collapse import WINDOW
from steadyrl.lab.figure import Arm, Claim, Figure, Measure, changed, cold_recipe, figures
from steadyrl.lab.preface import HEAD, JUDGED
from steadyrl.lab.result import Result, measure, results_of
from steadyrl.lab.verdict import FEWEST, MANY, Finding, interval, judge
from steadyrl.metrics import write_atomically

Results = Mapping[str, Sequence[Result]]


def write(lab: Path, docs: Path) -> list[Path]:
    """Write the page and its pictures, and delete pictures of what has no results; the paths written."""
    from steadyrl.lab.picture import draw

    written = [docs / "replication.md"]
    pictures = docs / "replication"
    pictures.mkdir(parents=True, exist_ok=True)
    for figure in figures(lab):
        results = results_of(lab, figure)
        if any(results[arm] for arm in figure.arms):
            written.append(pictures / f"{figure.name}.svg")
            draw(figure, results, written[-1])
    write_atomically(docs / "replication.md", page(lab))
    for stale in set(pictures.glob("*.svg")) - set(written):
        stale.unlink()
    return written


def page(lab: Path) -> str:
    """The page as Markdown."""
    every = [(figure, results_of(lab, figure)) for figure in figures(lab)]
    parts = [HEAD, "## What was found\n", _glance(every), _beginnings(every), "## Verdicts\n", _verdicts(every)]
    parts += ["## How it is judged\n", JUDGED, "## Regimes\n", _regimes(lab, every)]
    parts += [_section(lab, figure, results) for figure, results in every]
    parts += ["## What announces a collapse\n", _announcements(every)]
    return "\n".join(parts)


def _glance(every: Iterable[tuple[Figure, Results]]) -> str:
    """Of every figure that has runs: how many collapsed, and how its arms with clipping ended."""
    rows = []
    for figure, results in every:
        grid = {found: results[name] for name, arm in figure.arms.items() if (found := _clip_and_replay(arm))}
        if not any(grid.values()):
            continue
        fallen = [
            _fallen([run for (clip, _), runs in grid.items() if clip is way for run in runs]) for way in (False, True)
        ]
        ends = [
            format(fmean(measure(run, "final") for run in runs), ".3f") if (runs := grid.get((clip, replay))) else "–"
            for clip in (False, True)
            for replay in ("none", "R2", "R3")
        ]
        rows.append((f"[{figure.title}](#{_anchor(figure.title)})", *fallen, *ends))
    words = (
        "Runs that collapsed without clipping and with it, and held-out accuracy at the end (T = 1, the sampler's "
        "precision, mean over the seeds) by what is replayed.\n"
    )
    head = ("figure", "collapsed, no clip", "collapsed, clip")
    arms = [f"{replay}, {clip}" for clip in ("no clip", "clip") for replay in ("no replay", "R2", "R3")]
    return "\n".join([words, _table((*head, *arms), rows)])


def _beginnings(every: Iterable[tuple[Figure, Results]]) -> str:
    """How much of the problems the policies could do before they were reinforced."""
    runs = [run for figure, results in every for arm in figure.arms for run in results[arm]]
    if not runs:
        return ""
    sampled, greedy = (sorted(run.accuracy(mode)[0][1] for run in runs) for mode in ("sampled", "greedy"))
    return (
        f"After the cold start sampling is right in {sampled[0]:.2f} to {sampled[-1]:.2f} of the held-out problems and "
        f"greedy decoding in {greedy[0]:.2f} to {greedy[-1]:.2f}: most of what sampling gains is sharpening.\n"
    )


def _clip_and_replay(arm: Arm) -> tuple[bool, str] | None:
    """Whether an arm clips, and what it replays; None for one that changes anything else."""
    known = {
        "objective": {"clip": arm.change.get("objective", {}).get("clip", True)},
        "update": {"replay": arm.change.get("update", {}).get("replay", "none")},
    }
    alone = not arm.cold and changed(known, arm.change) == known
    return (known["objective"]["clip"], known["update"]["replay"]) if alone else None


def _fallen(runs: Sequence[Result]) -> str:
    return f"{sum(run.collapsed_at is not None for run in runs)} of {len(runs)}" if runs else "–"


def _verdicts(every: Iterable[tuple[Figure, Results]]) -> str:
    rows, waiting = [], []
    for figure, results in every:
        link = f"[{figure.name}](#{_anchor(figure.title)})"
        for claim in figure.claims:
            if any(results[arm] for arm in _judged(figure, claim)):
                text = claim.text + (" (written after runs had been seen)" if claim.after_runs else "")
                rows.append((claim.id, text, link, _verdict(figure, claim, results)))
            else:
                waiting.append((claim.id, claim.text, link))
    for table in (rows, waiting):
        table.sort(key=lambda row: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", row[0])])
    words = "C1 to C10 number the paper's claims; the others are ours.\n"
    parts = [words, _table(("claim", "in words", "figure", "verdict"), rows)]
    if waiting:
        parts += ["Not run yet:\n", _table(("claim", "in words", "figure"), waiting)]
    return "\n".join(parts)


def _judged(figure: Figure, claim: Claim) -> set[str]:
    """The arms of its own figure that a claim is about; one about collapses is about all."""
    return {arm for arm in claim.arms if "/" not in arm} or set(figure.arms)


def _verdict(figure: Figure, claim: Claim, results: Results) -> str:
    """The verdict, why it is not visible, and how many of its runs it rests on, where they are not all there yet."""
    verdict, findings = judge(claim, results)
    reasons = dict.fromkeys(finding.reason for finding in findings if finding.verdict == verdict and finding.reason)
    arms = _judged(figure, claim)
    have, asked = sum(len(results[arm]) for arm in arms), len(arms) * len(figure.seeds)
    words = f"**{verdict}**" + (f": {', '.join(reasons)}" if reasons else "")
    return words if have == asked else f"{words} ({have} of {asked} runs)"


def _regimes(lab: Path, every: Iterable[tuple[Figure, Results]]) -> str:
    """What each regime says of itself: the comment at the head of its file."""
    words = []
    for name in sorted({figure.regime for figure, _ in every}):
        lines = (lab / "regimes" / f"{name}.toml").read_text(encoding="utf-8").splitlines()
        comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
        words.append(f"- [{name}](../lab/regimes/{name}.toml). {' '.join(line.strip('# ') for line in comment)}\n")
    return "".join(words)


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
        (claim.id, finding.text, finding.effect, _words(finding))
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
        runs, title = results[name], f"{arm.label} (`{name}`)"
        if not runs:
            rows.append((title, "not run", *[""] * (len(_COLUMNS) + 1)))
            continue
        cells = [format(fmean(measure(run, what) for run in runs), form) for _, what, form in _COLUMNS]
        if len(runs) >= FEWEST:
            low, high = interval([measure(run, "final") for run in runs])
            cells[0] += f" [{max(0.0, low):.3f}, {min(1.0, high):.3f}]"
        at = [(step + 1) * run.minibatches for run in runs if (step := run.collapsed_at) is not None]
        fallen = f"{len(at)} of {len(runs)}" + (f", at update {median(at):.0f}" if at else "")
        rows.append((title, str(len(runs)), fallen, *cells))
    return _table(("arm", "runs", "collapsed", *(title for title, _, _ in _COLUMNS)), rows)


def _words(finding: Finding) -> str:
    """The verdict on a rule; if undecided, how many seeds would decide it with this mean and this spread."""
    words = ": ".join(filter(None, (finding.verdict, finding.reason)))
    if finding.seeds_needed is None:
        return words
    seeds = f"more than {MANY}" if finding.seeds_needed == MANY else f"about {finding.seeds_needed}"
    return f"{words} ({seeds} seeds)"


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
        f"Of the figures in which a run collapsed. A quantity is averaged over {WINDOW} updates, as the reward is; it "
        f"sounds the alarm beyond the {QUANTILE:.0%} quantile of all steps of the figure's stable runs with other "
        "seeds. Lead: updates from the first alarm to the collapse; an alarm at the collapse or after it announces "
        "nothing. (At first an alarm was two steps in a row without the average: 16 updates at N = 8, two at N = 1.)\n"
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
