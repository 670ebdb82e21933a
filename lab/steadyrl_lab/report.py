"""The page of the lab, from the stored results alone: `docs/replication.md` and its pictures."""

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median

from steadyrl.collapse import WINDOW
from steadyrl.run.logs import write_atomically
from steadyrl_lab.alarm import AROUND, SIGNS, around, record, usual
from steadyrl_lab.archive import pack, results_of
from steadyrl_lab.figure import Arm, Claim, Figure, Higher, Measure, changed, cold_name, cold_recipe, figures
from steadyrl_lab.preface import ALARMS, COURSES, HEAD, JUDGED
from steadyrl_lab.result import Result, measure
from steadyrl_lab.verdict import FEWEST, MANY, RuleFinding, decide, interval, judge

Results = Mapping[str, Sequence[Result]]


def write(lab: Path, docs: Path) -> list[Path]:
    """Pack the results, write the page and its pictures, delete pictures of what has no results; the paths written."""
    from steadyrl_lab.picture import draw

    written = [docs / "replication.md"]
    pictures = docs / "replication"
    pictures.mkdir(parents=True, exist_ok=True)
    for figure in figures(lab):
        pack(lab, figure.name)
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
    parts += [_section(lab, figure, every) for figure, _ in every]
    parts += ["## What announces a collapse\n", _announcements(every)]
    return "\n".join(parts)


def _glance(every: Iterable[tuple[Figure, Results]]) -> str:
    """Of every figure that has runs of several ways to clip and to replay: how many collapsed, and how they ended."""
    rows = []
    for figure, results in every:
        ways = {name: found for name, arm in figure.arms.items() if (found := _clip_and_replay(figure, arm))}
        grid = {found: results[name] for name, found in ways.items() if results[name]}
        if len(grid) < 2:
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
        "Runs that collapsed, without clipping and with it. The number in brackets counts runs that end no better than "
        "they began, collapsed or not. Accuracy is that on held-out problems at the end: sampled at T = 1 in the "
        "sampler's precision, mean over the seeds. Figures that compare something else are below.\n"
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
        f"After the cold start, sampling is right in {sampled[0]:.2f} to {sampled[-1]:.2f} of the held-out problems, "
        f"and greedy decoding in {greedy[0]:.2f} to {greedy[-1]:.2f}. What sampling gains up to there needs no new "
        "skill. The tables below show where greedy decoding ends.\n"
    )


def _clip_and_replay(figure: Figure, arm: Arm) -> tuple[bool, str] | None:
    """Whether an arm clips, and what it replays; None for one that changes anything else."""
    change = changed(figure.change, arm.change)
    known = {
        "objective": {"clip": change.get("objective", {}).get("clip", True)},
        "update": {"replay": change.get("update", {}).get("replay", "none")},
    }
    alone = not arm.cold and changed(known, arm.change) == known
    return (known["objective"]["clip"], known["update"]["replay"]) if alone else None


def _fallen(runs: Sequence[Result]) -> str:
    """How many runs collapsed and, in brackets where there are any, how many end no better than they began."""
    collapsed = sum(run.collapsed_at is not None for run in runs)
    no_better = sum(measure(run, "final") <= run.accuracy()[0][1] for run in runs)
    return f"{collapsed} of {len(runs)}" + (f" ({no_better})" if no_better else "") if runs else "–"


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
    return "\n".join([*parts, _by_chance(every)])


def _by_chance(every: Iterable[tuple[Figure, Results]]) -> str:
    """How many comparisons the page makes, and what chance alone would make of them."""
    found = [
        finding.verdict
        for figure, results in every
        for claim in figure.claims
        for rule in claim.rules
        if isinstance(rule, Higher)
        for finding in decide(rule, results)
        if finding.verdict != "not run"
    ]
    decided = len(found) - found.count("not visible here")
    return (
        f"Of {len(found)} comparisons of one arm with another {decided} are decided. Were no two arms different, about "
        f"{len(found) * 0.05:.0f} would be by chance, half of them for the claim.\n"
    )


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


def _section(lab: Path, figure: Figure, every: Sequence[tuple[Figure, Results]]) -> str:
    results = next(results for other, results in every if other is figure)
    runs = [run for arm in figure.arms for run in results[arm]]
    parts = [f"## {figure.title}\n"]
    if not runs:
        return "\n".join([*parts, f"Not run yet: `python -m steadyrl_lab run {figure.name}`.\n"])
    hours, machines = sum(run.seconds for run in runs) / 3600, sorted({run.machine for run in runs})
    asked = len(figure.arms) * len(figure.seeds)
    with_change = f" with `{json.dumps(figure.change, ensure_ascii=False)}`" if figure.change else ""
    parts += [
        f"Regime *{figure.regime}* (`lab/regimes/{figure.regime}.toml`){with_change}, N = {figure.minibatches}, "
        f"{figure.updates} updates, {len(runs)} of {asked} runs, {hours:.1f} core-hours of steps "
        f"({'; '.join(machines)}). {_regime(runs)}{_missed(lab, figure, results)}"
        f"{_made_twice(figure, every)}\n",
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
    natural = [run for run in runs if run.replay != "R3"]
    words = {"mismatch/k3": "k3 of μ against π_old is", "routes/disagreement": "the share of expert sets that differ"}
    found = []
    for name, text in words.items():
        if first := [value for run in natural or runs for value in run.steps.get(name, [])[:1] if value is not None]:
            found.append(f"{text} {fmean(first):.2g}")
    return f"At the first step{'' if natural else ', under R3,'} {', '.join(found)}." if found else ""


MISSED = 0.05
"""A cold start that ends this far below the accuracy it was to stop at has missed it."""


def _missed(lab: Path, figure: Figure, results: Results) -> str:
    """Which cold starts ran out of steps before they reached their mark."""
    found: dict[str, str] = {}
    for arm in figure.arms:
        for run in results[arm]:
            options = cold_recipe(lab, figure, arm, run.seed).cold_start
            first = run.accuracy()[0][1]
            if options is not None and first < options.stop_at - MISSED:
                found[f"{cold_name(figure, arm)}-{run.seed}"] = f"{first:.3f} instead of {options.stop_at}"
    words = ", ".join(f"`{name}` ended at {end}" for name, end in found.items())
    return f" Cold starts that did not reach their mark: {words}." if found else ""


def _made_twice(figure: Figure, every: Iterable[tuple[Figure, Results]]) -> str:
    """Which arms have the recipe of an arm of another figure, and so the same runs."""
    everywhere = [(other, arm, run) for other, results in every for arm in other.arms for run in results[arm]]
    own = {json.dumps(run.recipe, sort_keys=True): arm for other, arm, run in everywhere if other is figure}
    twins = dict.fromkeys(
        f"`{own[recipe]}` is `{arm}` of [{other.title}](#{_anchor(other.title)}), made twice"
        for other, arm, run in everywhere
        if other is not figure and (recipe := json.dumps(run.recipe, sort_keys=True)) in own
    )
    return f" {'; '.join(twins)}." if twins else ""


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
        greedy = [title for title, _, _ in _COLUMNS].index("greedy")
        cells[greedy] = f"{fmean(run.accuracy('greedy')[0][1] for run in runs):.3f} → {cells[greedy]}"
        at = [(step + 1) * run.minibatches for run in runs if (step := run.collapsed_at) is not None]
        fallen = _fallen(runs) + (f", at update {median(at):.0f}" if at else "")
        rows.append((title, str(len(runs)), fallen, *cells))
    return _table(("arm", "runs", "collapsed", *(title for title, _, _ in _COLUMNS)), rows)


def _words(finding: RuleFinding) -> str:
    """The verdict on a rule; if undecided, how many seeds would decide it with this mean and this spread."""
    words = ": ".join(filter(None, (finding.verdict, finding.reason)))
    if finding.seeds_needed is None:
        return words
    seeds = f"{MANY} or more" if finding.seeds_needed == MANY else f"about {finding.seeds_needed}"
    return f"{words} ({seeds} seeds would decide {finding.leans} it)"


def _announcements(every: Sequence[tuple[Figure, Results]]) -> str:
    """How each quantity did as an alarm, and where it stood around the collapses."""
    runs = [[run for arm in figure.arms for run in results[arm]] for figure, results in every]
    runs = [figure for figure in runs if any(run.collapsed_at is not None for run in figure)]
    if not runs:
        return "No run has collapsed yet.\n"
    alarms, courses = [], []
    stable, fallen = (
        [run for figure in runs for run in figure if (run.fell_at is None) is way] for way in (True, False)
    )
    logged = {name for run in (*stable, *fallen) for name in run.steps}
    signs = [sign for sign in SIGNS if sign[0] in logged]  # older results lack the newer quantities
    for name, way in signs:
        leads, false = record(runs, name, way)
        early = [lead for lead in leads if lead is not None]
        cells = (f"{len(early)} of {len(leads)}", f"{fmean(false):.0%}" if false else "–")
        alarms.append((f"`{name}` {way}", *cells, f"{median(early):.0f}" if early else "–"))
    for name in dict.fromkeys(name for name, _ in signs):
        course = [usual(stable, name), *around(fallen, name)]
        courses.append((f"`{name}`", *("–" if value is None else f"{value:.2g}" for value in course)))
    head = ("quantity", "collapses announced", "stable runs with an alarm by then", "median lead, updates")
    places = {-1: "the window before", 0: "from the fall on"}
    titles = [places.get(place, f"{place * WINDOW:+d} updates") for place in AROUND]
    return "\n".join([ALARMS, _table(head, alarms), COURSES, _table(("quantity", "stable runs", *titles), courses)])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _anchor(title: str) -> str:
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")
