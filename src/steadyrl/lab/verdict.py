"""Rules held against results: replicated, contradicted, or not visible here. Written down before the runs are made.

A difference between two arms is paired by seed, since both share problems, sampling and cold start; its 95% interval is
Student's over the seeds. A share of runs has Wilson's interval. A rule is replicated if its whole interval lies on the
claimed side, contradicted if all of it lies on the other, and not visible otherwise.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Literal, NamedTuple

from steadyrl.lab.collapse import WINDOW, smoothed
from steadyrl.lab.figure import Alike, Claim, Collapses, Higher, Measure, Rule, Stable
from steadyrl.lab.result import Result, measure

Verdict = Literal["replicated", "contradicted", "not visible here", "not run"]
Results = Mapping[str, Sequence[Result]]

STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""The 97.5% quantile of Student's t with n − 1 degrees of freedom, by n; above 10 that of 10."""
ENTROPY_DROP = 0.5
"""A sharp drop: to less than this share of its median so far, within the window around a collapse."""
KL_RISE = 2.0
"""A rise: to more than this many times its median so far."""


class Finding(NamedTuple):
    """What a rule came to."""

    verdict: Verdict
    """Its verdict."""
    text: str
    """The comparison, in words."""
    effect: str
    """The effect with its 95% interval and the number of runs."""
    seeds_needed: int | None = None
    """About how many seeds would decide it, if the effect is as large as it looks; None: it is decided, or not run."""


def judge(claim: Claim, results: Results) -> tuple[Verdict, list[Finding]]:
    """All rules of a claim, and what they come to together.

    Replicated if every rule is; contradicted if one is; not run if one lacks its runs; else not visible here.
    """
    findings = [finding for rule in claim.rules for finding in decide(rule, results)]
    verdicts = [finding.verdict for finding in findings]
    for decisive in ("not run", "contradicted", "not visible here"):
        if decisive in verdicts:
            return decisive, findings
    return "replicated", findings


def decide(rule: Rule, results: Results) -> list[Finding]:
    """One rule: a finding for each comparison that it makes."""
    match rule:
        case Higher():
            return [_compare(results, rule, other) for other in rule.than]
        case Alike():
            return [_alike(results, rule)]
        case Collapses() | Stable():
            runs = results[rule.arm]
            hits = [(run.collapsed_at is not None) == isinstance(rule, Collapses) for run in runs]
            return [_share(hits, f"{rule.arm} {'collapses' if isinstance(rule, Collapses) else 'stays stable'}")]
        case _:
            own = [run for name, runs in results.items() if "/" not in name for run in runs]
            fallen = [run for run in own if run.collapsed_at is not None]
            return [_share([_shows(run) for run in fallen], "collapses come with an entropy drop or a rise of the KL")]


def _compare(results: Results, rule: Higher, other: str) -> Finding:
    text = f"{rule.measure}: {rule.arm} above {other}" + (f" by {rule.by:g}" if rule.by else "")
    differences = _paired(results[rule.arm], results[other], rule.measure)
    if len(differences) < 2:
        return Finding("not run", text, f"{len(differences)} pairs")
    low, high = interval(differences)
    verdict = "replicated" if low > rule.by else "contradicted" if high < rule.by else "not visible here"
    return _difference(verdict, text, differences, room=abs(fmean(differences) - rule.by))


def _alike(results: Results, rule: Alike) -> Finding:
    text = f"{rule.measure}: {rule.arm} within {rule.within:g} of {rule.to}"
    differences = _paired(results[rule.arm], results[rule.to], rule.measure)
    if len(differences) < 2:
        return Finding("not run", text, f"{len(differences)} pairs")
    low, high = interval(differences)
    inside, outside = -rule.within < low and high < rule.within, high < -rule.within or low > rule.within
    verdict = "replicated" if inside else "contradicted" if outside else "not visible here"
    return _difference(verdict, text, differences, room=abs(rule.within - abs(fmean(differences))))


def _difference(verdict: Verdict, text: str, differences: Sequence[float], *, room: float) -> Finding:
    """A finding about a mean difference that lies `room` from where the verdict would change."""
    low, high = interval(differences)
    effect = f"{fmean(differences):+.3f} [{low:+.3f}, {high:+.3f}], {len(differences)} pairs"
    if verdict != "not visible here" or not room:
        return Finding(verdict, text, effect)
    return Finding(verdict, text, effect, math.ceil(len(differences) * ((high - low) / 2 / room) ** 2))


def _paired(ours: Sequence[Result], theirs: Sequence[Result], what: Measure) -> list[float]:
    """Differences of a measure between the runs of the same seed."""
    other = {run.seed: measure(run, what) for run in theirs}
    return [measure(run, what) - other[run.seed] for run in ours if run.seed in other]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95% interval of the mean of at least two values."""
    n = len(values)
    half = STUDENT[min(n, 10)] * stdev(values) / math.sqrt(n)
    return fmean(values) - half, fmean(values) + half


def _share(hits: Sequence[bool], text: str) -> Finding:
    """Whether something holds for most runs."""
    n = len(hits)
    if not n:
        return Finding("not run", text, "0 runs")
    low, high = wilson(sum(hits), n)
    verdict = "replicated" if low > 0.5 else "contradicted" if high < 0.5 else "not visible here"
    return Finding(verdict, text, f"{sum(hits)} of {n} runs [{low:.2f}, {high:.2f}]")


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share."""
    z, p = 1.959964, hits / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def _shows(run: Result) -> bool:
    """Whether entropy or divergence had moved by the time of the collapse."""
    at, window = run.collapsed_at, max(1, WINDOW // run.minibatches)
    assert at is not None
    entropy = smoothed([v or 0.0 for v in run.steps["policy/entropy"]], window)
    kl = smoothed([v or 0.0 for v in run.steps["mismatch/k3"]], window)
    near = slice(max(0, at - window), at + window + 1)
    before = slice(0, max(1, at - window))
    dropped = min(entropy[near]) < ENTROPY_DROP * sorted(entropy[before])[len(entropy[before]) // 2]
    return dropped or max(kl[near]) > KL_RISE * sorted(kl[before])[len(kl[before]) // 2]
