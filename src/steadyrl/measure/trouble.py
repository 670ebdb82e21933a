"""What counts as trouble: signs, in a step's metrics, that a run does not learn what it should.

Everything here is pure over the rows of `metrics.jsonl`: the same rows give the same trouble, in a straight run, in a
resumed one and in the report.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from steadyrl.collapse import RewardSoFar

SEVERAL = 3
"""Steps in a row, where one step could be chance."""
MOST_CUT = 0.9
"""Share of responses."""
LOW_ENTROPY_TOKEN = 1e-3
"""Nats per token. Of the lab's 347 runs, 331 of them stable, none came below 3.2e-3 at any step."""
LOW_ENTROPY_RESPONSE = 0.1
"""Nats per response, entropy times length: two responses to a prompt are equal with a chance of at least e^−0.1 = 90%,
for Σp² ≥ e^−H."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What must be remembered of earlier steps."""

    reward: RewardSoFar
    """Of the mean reward."""
    steps: int = 0
    """Steps that had a reward."""
    lowest: float | None = None
    """Lowest reward of any response so far."""
    highest: float | None = None
    """Highest reward so far."""
    uniform: int = 0
    """Steps in a row, the last one included, whose groups were all uniform."""

    def after(self, row: Mapping[str, Any]) -> "Seen":
        """What is known once a step has been seen."""
        uniform = self.uniform + 1 if _at_least(row, "reward/uniform_groups", 1.0) else 0
        mean = row.get("reward/mean")
        reward = self.reward if mean is None else self.reward.after(mean)
        low, high = row.get("reward/min"), row.get("reward/max")
        if low is None or high is None:
            return replace(self, reward=reward, uniform=uniform)
        return Seen(
            reward=reward,
            steps=self.steps + 1,
            lowest=low if self.lowest is None else min(self.lowest, low),
            highest=high if self.highest is None else max(self.highest, high),
            uniform=uniform,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One kind of trouble."""

    name: str
    """Its name in `metrics.jsonl`, behind `trouble/`."""
    rule: str
    """When it is there, for the page of metrics."""
    says: str
    """The sentence that a user reads; `{…}` are metrics of the step."""
    advice: str
    """What to do."""
    holds: Callable[[Seen, Mapping[str, Any]], bool]
    """Whether a step has it, given what has been seen with this step."""


def _at_least(row: Mapping[str, Any], name: str, bound: float) -> bool:
    value = row.get(name)
    return value is not None and value >= bound


def _cut(seen: Seen, row: Mapping[str, Any]) -> bool:
    return _at_least(row, "response/truncated", MOST_CUT)


def _cut_and_paid(seen: Seen, row: Mapping[str, Any]) -> bool:
    return _cut(seen, row) and _at_least(row, "reward/accuracy", MOST_CUT)


def _collapse(seen: Seen, row: Mapping[str, Any]) -> bool:
    return seen.reward.collapsed


def _uniform(seen: Seen, row: Mapping[str, Any]) -> bool:
    return seen.uniform >= SEVERAL


def _floor(seen: Seen, row: Mapping[str, Any]) -> bool:
    unpaid = not row.get("reward/accuracy")
    return seen.steps >= SEVERAL and seen.lowest == seen.highest and unpaid


def _entropy(seen: Seen, row: Mapping[str, Any]) -> bool:
    entropy, length = row.get("policy/entropy"), row.get("response/length")
    if entropy is None:
        return False
    return entropy < LOW_ENTROPY_TOKEN or (length is not None and entropy * length < LOW_ENTROPY_RESPONSE)


def _failures(seen: Seen, row: Mapping[str, Any]) -> bool:
    return _at_least(row, "reward/failures", 1)


def _skipped(seen: Seen, row: Mapping[str, Any]) -> bool:
    return _at_least(row, "update/skipped", 1)


KINDS: tuple[Kind, ...] = (
    Kind(
        name="cut_and_paid",
        rule="At least 90% of the responses are cut at the length limit, and at least 90% are right.",
        says="{response/truncated:.0%} of the responses are cut at the length limit, yet {reward/accuracy:.0%} are "
        "paid in full",
        advice="Read responses in rollouts.jsonl: the verifier may pay for text that answers nothing.",
        holds=_cut_and_paid,
    ),
    Kind(
        name="collapse",
        rule="The mean reward, averaged over 8 updates, is below 2/3 of its best so far, in the last two steps or more "
        "and for at least 1/12 of the run so far.",
        says="the mean reward has fallen to {reward/mean:.3g}, less than 2/3 of its best so far",
        advice="Go back to an earlier checkpoint, with a smaller learning rate or more clipping.",
        holds=_collapse,
    ),
    Kind(
        name="cut",
        rule="At least 90% of the responses are cut at the length limit.",
        says="{response/truncated:.0%} of the responses are cut at the length limit",
        advice="Raise rollout.max_new_tokens, and check that the model's end token ends a response.",
        holds=_cut,
    ),
    Kind(
        name="floor",
        rule="After 3 steps or more, every reward of the run so far is the same, and no response is right.",
        says="no reward has ever been above the lowest, {reward/max:g}",
        advice="Nothing can be learnt: check the prompt and the verifier, or begin with easier problems.",
        holds=_floor,
    ),
    Kind(
        name="uniform",
        rule="In the last 3 steps or more, the rewards of every group are all equal.",
        says="the rewards of every group have been equal for 3 steps or more, mean {reward/mean:.3g}",
        advice="There is no gradient: the problems are too hard or too easy, or the reward is too coarse.",
        holds=_uniform,
    ),
    Kind(
        name="entropy",
        rule="Entropy is below 0.001 nats per token, or entropy times mean length below 0.1 nats per response: two "
        "responses to a prompt are then equal in 9 of 10 cases or more.",
        says="the entropy is near zero, {policy/entropy:.2g} nats per token: the responses to a prompt are nearly all "
        "the same",
        advice="Nothing new is tried: go back to an earlier checkpoint, with a smaller learning rate or more clipping.",
        holds=_entropy,
    ),
    Kind(
        name="failures",
        rule="The verifier failed on some responses.",
        says="the verifier failed on {reward/failures:g} of the step's responses",
        advice="The reasons are in failures.jsonl, the responses in rollouts.jsonl.",
        holds=_failures,
    ),
    Kind(
        name="skipped",
        rule="Updates were skipped because loss or gradient was not finite.",
        says="loss or gradient was not finite in {update/skipped:g} of the step's updates, which were skipped",
        advice="Use a smaller optimizer.learning_rate, or float32 weights.",
        holds=_skipped,
    ),
)
"""Every kind, the gravest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trouble:
    """A kind of trouble that a run had, and when."""

    kind: Kind
    """What."""
    first: int
    """The step at which it began."""
    last: int
    """The last step that had it."""
    steps: int
    """How many steps had it."""
    says: str
    """The sentence, with the numbers of the last step that had it."""


def look(seen: Seen, row: Mapping[str, Any]) -> tuple[Seen, list[Kind]]:
    """What is known after one more step, and the kinds of trouble that this step has."""
    seen = seen.after(row)
    return seen, [kind for kind in KINDS if kind.holds(seen, row)]


def sentence(kind: Kind, row: Mapping[str, Any]) -> str:
    """What a user reads of a step that has this trouble; a number that was not finite is `nan`."""
    return kind.says.format_map(_Numbers({name: math.nan if v is None else v for name, v in row.items()}))


class _Numbers(dict[str, Any]):
    def __missing__(self, name: str) -> float:
        return math.nan


def fields(kinds: Iterable[Kind]) -> dict[str, int]:
    """The numbers of a step's row: 1 for each kind that it has, else 0."""
    found = {kind.name for kind in kinds}
    return {f"trouble/{kind.name}": int(kind.name in found) for kind in KINDS}


class Watch:
    """Checks one step after the other, and keeps the trouble that it found."""

    def __init__(self, rows: Iterable[Mapping[str, Any]] = (), *, minibatches: int) -> None:
        """Begin after the rows of earlier steps.

        Args:
            rows: of `metrics.jsonl`.
            minibatches: N, the gradient updates of a step.
        """
        self._seen = Seen(reward=RewardSoFar(minibatches=minibatches))
        self._found: dict[str, Trouble] = {}
        for row in rows:
            self.see(row)

    def see(self, row: Mapping[str, Any]) -> list[Trouble]:
        """The trouble that a step, a row with its `step`, has."""
        self._seen, kinds = look(self._seen, row)
        for kind in kinds:
            before = self._found.get(kind.name)
            self._found[kind.name] = Trouble(
                kind=kind,
                first=before.first if before else row["step"],
                last=row["step"],
                steps=before.steps + 1 if before else 1,
                says=sentence(kind, row),
            )
        return [self._found[kind.name] for kind in kinds]

    @property
    def found(self) -> list[Trouble]:
        """All trouble so far, the gravest first."""
        return [self._found[kind.name] for kind in KINDS if kind.name in self._found]


def unreached(rows: Sequence[Mapping[str, Any]], *, correct_at: float) -> str | None:
    """What to say of an evaluation in which no response to a set is right; None where one is.

    Args:
        rows: lines of `eval.jsonl` that belong together. Those of older runs, without rewards, say nothing.
        correct_at: the recipe's `task.correct_at`.
    """
    for name in dict.fromkeys(row.get("set", "held_out") for row in rows):
        known = [row for row in rows if row.get("set", "held_out") == name and row.get("reward_max") is not None]
        if known and not any(row["accuracy"] for row in known):
            highest = max(row["reward_max"] for row in known)
            return (
                f"no response to the {name} problems has a reward of at least task.correct_at = {correct_at:g}, so the "
                f"accuracy is 0; the highest reward is {highest:g}, the mean {known[0]['reward']:.3g}. Where rewards "
                "are partial credit, lower task.correct_at, or follow the mean reward"
            )
    return None
