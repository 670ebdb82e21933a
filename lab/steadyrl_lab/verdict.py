"""Rules held against results: replicated, contradicted, or not visible here. Written down before the runs are made.

A difference between two arms is paired by seed, since both share problems, sampling and cold start; its 95% interval is
Student's over the seeds. A share of runs has Wilson's interval. A rule is replicated if its whole interval lies on the
claimed side, contradicted if all of it lies on the other, and not visible otherwise. Whether one arm collapses more
often than another is decided by the sign test over the seeds.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist, fmean, stdev
from typing import Literal, NamedTuple

from steadyrl.collapse import WINDOW
from steadyrl_lab.figure import Alike, Claim, Collapses, Higher, Measure, Rule, Stable
from steadyrl_lab.result import Result, measure

Verdict = Literal["replicated", "contradicted", "not visible here", "not run"]
Results = Mapping[str, Sequence[Result]]

STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""The 97.5% quantile of Student's t with n − 1 degrees of freedom, by n."""
Z = NormalDist().inv_cdf(0.975)
FEWEST = 4
"""Seeds without which the spread is not known well enough to say how many would decide."""
MANY = 1000
"""So many seeds, or more, are not counted."""
ONE_SIDED = 0.05
"""Level of the sign test on either side: five of five seeds are enough (1/32), four of four are not."""
FORMS: dict[Measure, str] = {"entropy": "+.1e", "kl": "+.1e", "kl_natural": "+.1e", "disagreement": "+.2%"}
"""How differences of a measure are printed; the others, which are shares, to three decimals."""


class RuleFinding(NamedTuple):
    """What a rule came to."""

    verdict: Verdict
    """Its verdict."""
    text: str
    """The comparison, in words."""
    effect: str
    """The effect with its 95% interval and the number of runs."""
    reason: str = ""
    """Why it is not visible."""
    seeds_needed: int | None = None
    """How many seeds would decide it, if mean and spread stay as they are, at most `MANY`; None: that is not known."""
    leans: Literal["for", "against"] = "for"
    """Which way these seeds would decide it."""


def judge(claim: Claim, results: Results) -> tuple[Verdict, list[RuleFinding]]:
    """All rules of a claim, and what they come to together.

    Contradicted if one rule is; else not run if one lacks its runs; else not visible if one is not; else replicated.
    Where the claim is about a collapse that its regime has to bring about, and does not, nothing of it is visible.
    """
    findings = [finding for rule in claim.rules for finding in decide(rule, results)]
    if claim.where_collapses is not None:
        findings = [_only_where(finding, claim.where_collapses, results) for finding in findings]
    verdicts = [finding.verdict for finding in findings]
    for decisive in ("contradicted", "not run", "not visible here"):
        if decisive in verdicts:
            return decisive, findings
    return "replicated", findings


def _only_where(finding: RuleFinding, arm: str, results: Results) -> RuleFinding:
    """The same finding, or none where at most half of the runs of `arm` have collapsed, or it has no runs."""
    if not results[arm]:
        return RuleFinding("not run", finding.text, f"{finding.effect}; {arm} has no runs")
    fallen = sum(run.collapsed_at is not None for run in results[arm])
    if finding.verdict == "not run" or 2 * fallen > len(results[arm]):
        return finding
    effect = f"{finding.effect}; but {arm} collapses in {fallen} of {len(results[arm])}"
    reason = "too few collapses to be saved from" if fallen else "nothing to be saved from"
    return RuleFinding("not visible here", finding.text, effect, reason)


def decide(rule: Rule, results: Results) -> list[RuleFinding]:
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
            return [_shown(own)]


def _compare(results: Results, rule: Higher, other: str) -> RuleFinding:
    text = f"{rule.measure}: {rule.arm} above {other}" + (f" by {rule.by:g}" if rule.by else "")
    differences = _paired(results[rule.arm], results[other], rule.measure)
    if len(differences) < 2:
        return RuleFinding("not run", text, f"{len(differences)} pairs")
    if rule.measure == "collapsed":
        return _sign_test(text, rule.arm, other, differences)
    low, high = interval(differences)
    verdict = "replicated" if low > rule.by else "contradicted" if high < rule.by else "not visible here"
    return _difference(verdict, text, rule.measure, differences, room=fmean(differences) - rule.by)


def _sign_test(text: str, arm: str, other: str, differences: Sequence[float]) -> RuleFinding:
    """Whether one arm collapses where the other does not, over the seeds at which they differ.

    Equation: P(X ≥ more), X binomial over those seeds with chance ½, which is McNemar's exact test.
    """
    more, fewer = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    ways = [math.comb(more + fewer, k) / 2 ** (more + fewer) for k in range(more + fewer + 1)]
    above, below = sum(ways[more:]), sum(ways[fewer:])
    verdict = "replicated" if above < ONE_SIDED else "contradicted" if below < ONE_SIDED else "not visible here"
    seeds = f"only {arm} at {more} of {len(differences)} seeds, only {other} at {fewer}"
    effect = f"{seeds}; p = {min(above, below):.3f}"
    return RuleFinding(verdict, text, effect, "undecided" if verdict == "not visible here" else "")


def _alike(results: Results, rule: Alike) -> RuleFinding:
    text = f"{rule.measure}: {rule.arm} within {rule.within:g} of {rule.to}"
    differences = _paired(results[rule.arm], results[rule.to], rule.measure)
    if len(differences) < 2:
        return RuleFinding("not run", text, f"{len(differences)} pairs")
    low, high = interval(differences)
    inside, outside = -rule.within < low and high < rule.within, high < -rule.within or low > rule.within
    verdict = "replicated" if inside else "contradicted" if outside else "not visible here"
    return _difference(verdict, text, rule.measure, differences, room=rule.within - abs(fmean(differences)))


def _difference(
    verdict: Verdict, text: str, what: Measure, differences: Sequence[float], *, room: float
) -> RuleFinding:
    """A finding about a mean difference that lies `room` on the claimed side of where the verdict changes."""
    mean, low, high = (format(v, FORMS.get(what, "+.3f")) for v in (fmean(differences), *interval(differences)))
    effect = f"{mean} [{low}, {high}], {len(differences)} pairs"
    if verdict != "not visible here":
        return RuleFinding(verdict, text, effect)
    return RuleFinding(
        verdict, text, effect, "undecided", _seeds_needed(differences, abs(room)), "for" if room > 0 else "against"
    )


def _seeds_needed(differences: Sequence[float], room: float) -> int | None:
    """The least number of seeds at which half the interval would be smaller than `room`, with this spread."""
    if len(differences) < FEWEST or not room:
        return None
    spread = stdev(differences)
    enough = (n for n in range(len(differences) + 1, MANY) if student(n) * spread / math.sqrt(n) < room)
    return next(enough, MANY)


def _paired(ours: Sequence[Result], theirs: Sequence[Result], what: Measure) -> list[float]:
    """Differences of a measure between the runs of the same seed; a seed where one of them has none is left out."""
    other = {run.seed: measure(run, what) for run in theirs}
    differences = [measure(run, what) - other[run.seed] for run in ours if run.seed in other]
    return [difference for difference in differences if math.isfinite(difference)]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95% interval of the mean of at least two values."""
    half = student(len(values)) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def student(n: int) -> float:
    """The 97.5% quantile of Student's t with n − 1 degrees of freedom; above 10 to 0.2%, by its expansion in 1/(n − 1).

    Equation: z + (z³ + z) / 4ν + (5z⁵ + 16z³ + 3z) / 96ν², ν = n − 1 (Abramowitz and Stegun, 26.7.5).
    """
    nu = n - 1
    return STUDENT.get(n) or Z + (Z**3 + Z) / (4 * nu) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * nu * nu)


def _share(hits: Sequence[bool], text: str, *, note: str = "") -> RuleFinding:
    """Whether something holds for most runs."""
    n = len(hits)
    if not n:
        return RuleFinding("not run", text, "0 runs")
    low, high = wilson(sum(hits), n)
    verdict = "replicated" if low > 0.5 else "contradicted" if high < 0.5 else "not visible here"
    reason = "undecided" if verdict == "not visible here" else ""
    return RuleFinding(verdict, text, f"{sum(hits)} of {n} runs [{low:.2f}, {high:.2f}]{note}", reason)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share."""
    p = hits / n
    centre, half = p + Z * Z / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return (centre - half) / (1 + Z * Z / n), (centre + half) / (1 + Z * Z / n)


def _shown(runs: Sequence[Result]) -> RuleFinding:
    """Whether most collapses show in the entropy or in the divergence."""
    text = "a collapse shows in the entropy or in the KL"
    stable = [run for run in runs if run.collapsed_at is None]
    fallen = [run for run in runs if run.collapsed_at is not None]
    if not runs:
        return RuleFinding("not run", text, "0 runs")
    if not fallen or not stable:
        reason = "nothing collapsed" if stable else "nothing is stable"
        return RuleFinding("not visible here", text, f"{len(fallen)} of {len(runs)} runs collapsed", reason)
    signs = [_signs(run, stable) for run in fallen]
    low, high = sum(low for low, _ in signs), sum(high for _, high in signs)
    return _share([any(pair) for pair in signs], text, note=f": entropy below in {low}, divergence above in {high}")


def _signs(run: Result, stable: Sequence[Result]) -> tuple[bool, bool]:
    """Whether, around its collapse, entropy is below, and divergence above, all that any stable run has at those steps.

    A healthy run's entropy falls too, as it learns; so what counts is the contrast with those.
    """
    at, window = run.collapsed_at, max(1, WINDOW // run.minibatches)
    assert at is not None
    near = slice(max(0, at - window), at + window + 1)

    def seen(one: Result, name: str, absent: float) -> list[float]:
        return smoothed([absent if v is None else v for v in one.steps.get(name, [])], window)[near] or [absent]

    entropy = min(value for one in stable for value in seen(one, "policy/entropy", math.inf))
    kl = max(value for one in stable for value in seen(one, "mismatch/k3", -math.inf))
    return min(seen(run, "policy/entropy", -math.inf)) < entropy, max(seen(run, "mismatch/k3", math.inf)) > kl


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last `window` values, fewer at the beginning."""
    parts = (values[max(0, i + 1 - window) : i + 1] for i in range(len(values)))
    return [sum(part) / len(part) for part in parts]
