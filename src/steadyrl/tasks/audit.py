"""The audit of a verifier: what it pays for responses that are right, and for junk."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from steadyrl.tasks.base import Context, Example, RightResponses, Split, Task
from steadyrl.tasks.batch import Reward, RewardRequest
from steadyrl.tasks.junk import Junk, junk_responses

Half = Literal["right", "junk"]
Verify = Callable[[Sequence[RewardRequest]], Sequence[Reward]]
_SPLIT: Split = "train"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A response that the audit tried."""

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
    """What it earned; None: the verifier failed."""
    failure: str | None
    """Why the verifier failed."""
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
    """Responses whose verifier failed."""
    highest: float | None = None
    """The highest reward; None: the verifier failed on each."""
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
        """Responses that only a strict audit counts: doubtful or partial ones, and those whose verifier failed."""
        return sum(row.doubtful + row.partial + row.failed for row in self.rows)

    def passed(self, *, strict: bool = False) -> bool:
        """Whether no junk was paid and every right response was; a strict audit leaves no doubt either."""
        return not (self.paid_junk or self.unpaid_right or (strict and self.doubts))

    def as_json(self) -> dict[str, Any]:
        """Plain values, with the two counts first."""
        return {"paid_junk": self.paid_junk, "unpaid_right": self.unpaid_right, "doubts": self.doubts, **asdict(self)}


def audit(
    task: Task,
    verify: Verify,
    *,
    problems: int,
    correct_at: float,
    together: int,
    seconds: float = float("inf"),
    prompt_text: Callable[[Example], str] = lambda example: example.question,
) -> Report:
    """Verify right responses and junk on some of the training problems.

    Args:
        task: Its problems and their right responses.
        verify: What gives responses their rewards; `RewardPool.rewards`.
        problems: How many are tried at most.
        correct_at: From this reward on a response is paid.
        together: Responses that are verified in one call; the time is checked between calls.
        seconds: No call begins after so many seconds. A problem that is not finished then is left out.
        prompt_text: The prompt that a reward function sees as `prompt_text`.

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
        rewards = _verified(verify, [_request(index, text, context) for text in texts], together, deadline)
        if len(rewards) < len(texts):
            break
        report.problems += 1
        report.without_reference += not right.forms
        paid, earned = rewards[: len(right.forms)], rewards[len(right.forms) :]
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


def _request(index: int, response: str, context: Context) -> RewardRequest:
    return RewardRequest(split=_SPLIT, index=index, completion=response, context=context)


def _verified(verify: Verify, requests: Sequence[RewardRequest], together: int, deadline: float) -> list[Reward]:
    """The rewards, or those of the first requests where time was up."""
    rewards: list[Reward] = []
    while len(rewards) < len(requests) and time.monotonic() < deadline:
        rewards.extend(verify(requests[len(rewards) : len(rewards) + together]))
    return rewards


def _right_findings(
    index: int, example: Example, right: RightResponses, rewards: Sequence[Reward], correct_at: float
) -> Iterator[Finding]:
    """The right half of one problem. Where one form is enough, the first represents all that are unpaid."""
    paid = [_is_paid(reward, correct_at) for reward in rewards]
    for number, ((form, response), reward) in enumerate(zip(right.forms, rewards, strict=True)):
        counts = not paid[number] if right.every else number == 0 and not any(paid)
        yield _finding("right", form, index, example, response, reward, paid=paid[number], counts=counts)


def _junk_findings(
    index: int, example: Example, junk: Sequence[Junk], rewards: Sequence[Reward], correct_at: float
) -> Iterator[Finding]:
    """The junk half of one problem; its first response is the empty one."""
    floor = rewards[0].value or 0.0
    for one, reward in zip(junk, rewards, strict=True):
        paid = _is_paid(reward, correct_at)
        partial = not paid and reward.value is not None and reward.value > floor
        counts, doubtful = paid and one.certain, paid and not one.certain
        yield _finding(
            "junk",
            one.form,
            index,
            example,
            one.response,
            reward,
            paid=paid,
            counts=counts,
            doubtful=doubtful,
            partial=partial,
        )


def _finding(
    half: Half, form: str, index: int, example: Example, response: str, reward: Reward, **verdict: bool
) -> Finding:
    return Finding(
        half=half,
        form=form,
        index=index,
        question=example.question,
        answer=example.answer,
        response=response,
        reward=reward.value,
        failure=reward.failure,
        **({"doubtful": False, "partial": False} | verdict),
    )


def _is_paid(reward: Reward, correct_at: float) -> bool:
    return reward.value is not None and reward.value >= correct_at


def _weight(finding: Finding) -> int:
    """How much a finding has to say as an example; 0: nothing."""
    return 4 * finding.counts + 3 * finding.doubtful + 2 * finding.partial + (finding.failure is not None)
