"""The audit of a verifier: what it pays for responses that are right, and for junk."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from steadyrl.tasks.base import Context, Example, RightResponses, Split, Task
from steadyrl.tasks.junk import Junk, junk_responses
from steadyrl.tasks.scoring import Score, ScoreRequest

Half = Literal["right", "junk"]
Scorer = Callable[[Sequence[ScoreRequest]], Sequence[Score]]
_SPLIT: Split = "train"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A response that the audit scored."""

    half: Half
    """Whether it is right or junk."""
    form: str
    """How the right response is written, or what kind of junk it is."""
    index: int
    """Number of the training problem."""
    question: str
    """The problem."""
    answer: str
    """Its reference answer; empty: none."""
    response: str
    """The response."""
    reward: float | None
    """What it earned; None: its scoring failed."""
    failure: str | None
    """Why its scoring failed."""
    paid: bool
    """Its reward is at least `task.correct_at`."""
    counts: bool
    """It is a fault of the verifier: junk that is paid, or a right response that is not."""
    doubtful: bool
    """Paid, and perhaps right."""
    partial: bool
    """Junk that earned more than the empty response, but is not paid."""


@dataclass(kw_only=True, slots=True)
class Row:
    """All responses of one form."""

    half: Half
    """Whether they are right or junk."""
    form: str
    """How the right responses are written, or what kind of junk they are."""
    tried: int = 0
    """Responses."""
    paid: int = 0
    """Of them, those with a reward of at least `task.correct_at`."""
    counts: int = 0
    """Faults: junk that is paid, or right responses that are not."""
    doubtful: int = 0
    """Paid, and perhaps right."""
    partial: int = 0
    """Junk that earned more than the empty response, but is not paid."""
    failed: int = 0
    """Responses whose scoring failed."""
    highest: float | None = None
    """The highest reward; None: every scoring failed."""
    example: Finding | None = None
    """The first fault; else the first that is doubtful, partial or failed."""

    def add(self, finding: Finding) -> None:
        """Count a response."""
        self.tried += 1
        self.paid += finding.paid
        self.counts += finding.counts
        self.doubtful += finding.doubtful
        self.partial += finding.partial
        self.failed += finding.failure is not None
        if finding.reward is not None:
            self.highest = finding.reward if self.highest is None else max(self.highest, finding.reward)
        if _weight(finding) > (_weight(self.example) if self.example else 0):
            self.example = finding


@dataclass(kw_only=True, slots=True)
class Report:
    """What an audit found."""

    correct_at: float
    """The reward from which a response counted as paid."""
    problems: int = 0
    """Problems tried."""
    without_reference: int = 0
    """Of them, those without a right response: their right half was skipped."""
    complete: bool = True
    """Off: time was up before all problems were tried."""
    rows: list[Row] = field(default_factory=list)
    """One for each form, right ones first."""

    @property
    def paid_junk(self) -> int:
        """Junk responses that were paid."""
        return sum(row.counts for row in self.rows if row.half == "junk")

    @property
    def unpaid_right(self) -> int:
        """Right responses that were not paid."""
        return sum(row.counts for row in self.rows if row.half == "right")

    @property
    def doubts(self) -> int:
        """Responses that only a strict audit counts: doubtful or partial ones, and those whose scoring failed."""
        return sum(row.doubtful + row.partial + row.failed for row in self.rows)

    def passed(self, *, strict: bool = False) -> bool:
        """Whether no junk was paid and every right response was; a strict audit leaves no doubt either."""
        return not (self.paid_junk or self.unpaid_right or (strict and self.doubts))

    def as_json(self) -> dict[str, Any]:
        """Plain values, with the two counts first."""
        return {"paid_junk": self.paid_junk, "unpaid_right": self.unpaid_right, "doubts": self.doubts, **asdict(self)}


def audit(
    task: Task,
    score: Scorer,
    *,
    problems: int,
    correct_at: float,
    together: int,
    seconds: float = float("inf"),
    prompt_text: Callable[[Example], str] = lambda example: example.question,
) -> Report:
    """Score right responses and junk on some of the training problems.

    Args:
        task: Its problems and their right responses.
        score: What scores responses; `ScorePool.score`.
        problems: How many are tried at most.
        correct_at: From this reward on a response is paid.
        together: Responses that are scored in one call; the time is looked at between calls.
        seconds: No call begins after so many seconds. A problem that is not finished then is left out.
        prompt_text: The prompt that a score function sees as `prompt_text`.

    Returns:
        Counts and an example for each form of response.
    """
    report, deadline = Report(correct_at=correct_at), time.monotonic() + seconds
    rows: dict[tuple[Half, str], Row] = {}
    earlier: list[tuple[Example, RightResponses]] = []
    indices = audited(task.size(_SPLIT), problems)
    for index in indices:
        if time.monotonic() >= deadline:
            break
        example, right = task.example(_SPLIT, index), task.right_responses(_SPLIT, index)
        other = next((pair for pair in reversed(earlier) if pair[0].answer != example.answer), None)
        earlier.append((example, right))
        junk = junk_responses(example, right, other)
        context = Context(prompt_text=prompt_text(example))
        texts = [*(response for _, response in right.forms), *(one.response for one in junk)]
        scores = _scored(score, [_request(index, text, context) for text in texts], together, deadline)
        if len(scores) < len(texts):
            break
        report.problems += 1
        report.without_reference += not right.forms
        paid, earned = scores[: len(right.forms)], scores[len(right.forms) :]
        for finding in (
            *_right_findings(index, example, right, paid, correct_at),
            *_junk_findings(index, example, junk, earned, correct_at),
        ):
            rows.setdefault((finding.half, finding.form), Row(half=finding.half, form=finding.form)).add(finding)
    report.complete = len(earlier) == report.problems == len(indices)
    report.rows = sorted(rows.values(), key=lambda row: row.half == "junk")
    return report


def audited(size: int | None, problems: int) -> Sequence[int]:
    """Which problems are tried: the first of an endless task, or evenly spaced ones of a finite task."""
    if size is None or size <= problems:
        return range(problems if size is None else size)
    return [position * size // problems for position in range(problems)]


def _request(index: int, response: str, context: Context) -> ScoreRequest:
    return ScoreRequest(split=_SPLIT, index=index, completion=response, context=context)


def _scored(score: Scorer, requests: Sequence[ScoreRequest], together: int, deadline: float) -> list[Score]:
    """The scores, or those of the first requests where time was up."""
    scores: list[Score] = []
    while len(scores) < len(requests) and time.monotonic() < deadline:
        scores.extend(score(requests[len(scores) : len(scores) + together]))
    return scores


def _right_findings(
    index: int, example: Example, right: RightResponses, scores: Sequence[Score], correct_at: float
) -> Iterator[Finding]:
    """The right half of one problem. Where one form is enough, the first stands for all that are unpaid."""
    paid = [_is_paid(score, correct_at) for score in scores]
    for number, ((form, response), score) in enumerate(zip(right.forms, scores, strict=True)):
        counts = not paid[number] if right.every else number == 0 and not any(paid)
        yield _finding("right", form, index, example, response, score, paid=paid[number], counts=counts)


def _junk_findings(
    index: int, example: Example, junk: Sequence[Junk], scores: Sequence[Score], correct_at: float
) -> Iterator[Finding]:
    """The junk half of one problem; its first response is the empty one."""
    floor = scores[0].reward or 0.0
    for one, score in zip(junk, scores, strict=True):
        paid = _is_paid(score, correct_at)
        partial = not paid and score.reward is not None and score.reward > floor
        counts, doubtful = paid and one.certain, paid and not one.certain
        yield _finding(
            "junk",
            one.form,
            index,
            example,
            one.response,
            score,
            paid=paid,
            counts=counts,
            doubtful=doubtful,
            partial=partial,
        )


def _finding(
    half: Half, form: str, index: int, example: Example, response: str, score: Score, **verdict: bool
) -> Finding:
    return Finding(
        half=half,
        form=form,
        index=index,
        question=example.question,
        answer=example.answer,
        response=response,
        reward=score.reward,
        failure=score.failure,
        **({"doubtful": False, "partial": False} | verdict),
    )


def _is_paid(score: Score, correct_at: float) -> bool:
    return score.reward is not None and score.reward >= correct_at


def _weight(finding: Finding) -> int:
    """How much a finding has to say as an example; 0: nothing."""
    return 4 * finding.counts + 3 * finding.doubtful + 2 * finding.partial + (finding.failure is not None)
