"""What the policy earns on held-out problems: accuracy, mean reward, pass@k and maj@k, with their uncertainty."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from steadyrl.engine.base import Engine
from steadyrl.estimates import Estimate, accuracy, maj_at, mean_reward, pass_at, sizes
from steadyrl.jsonl import Row
from steadyrl.responses import sample_rows, written
from steadyrl.rollout import (
    Group,
    Rewards,
    context_of,
    response_text,
    reward_groups,
    sample_groups,
    too_many_failures,
)
from steadyrl.session import Session, unquantised_engine
from steadyrl.tasks.base import Split
from steadyrl.types import Sampling

_SHOWN = 8  # responses of an evaluation that are written to samples.jsonl


@dataclass(frozen=True, kw_only=True, slots=True)
class ProblemSet:
    """Problems that are only evaluated."""

    split: Split
    """`held_out`, or the name of one of `evaluate.sets`."""
    prompts: int
    """How many of them are asked: the first."""

    @property
    def key(self) -> str:
        """Names the random numbers of its responses."""
        return "evaluate" if self.split == "held_out" else f"evaluate/{self.split}"


def evaluate(
    session: Session, engine: Engine, *, problems: ProblemSet, samples: int, greedy: bool
) -> tuple[Estimate, list[Group], Rewards]:
    """Let an engine answer the first problems of a set; the same ones, with the same random numbers, at any step.

    A response is right if its reward is at least `task.correct_at`; the estimate is the share of right ones.
    """
    options = session.recipe.evaluate
    sampling = Sampling(
        temperature=0.0 if greedy else options.temperature,
        max_new_tokens=session.recipe.rollout.max_new_tokens,
        top_p=options.top_p,
        top_k=options.top_k,
    )
    indices, samples = range(problems.prompts), 1 if greedy else samples
    groups = sample_groups(
        session, engine, problems.split, indices, responses=samples, sampling=sampling, key=problems.key
    )
    rewards = reward_groups(session, problems.split, groups)
    return accuracy((rewards.values >= session.recipe.task.correct_at).float(), rewards.known), groups, rewards


def held_out(session: Session) -> ProblemSet:
    """The problems that are set aside from training."""
    return ProblemSet(split="held_out", prompts=session.recipe.evaluate.prompts)


def problem_sets(session: Session) -> Iterator[ProblemSet]:
    """The held-out problems and every set of the recipe."""
    yield held_out(session)
    for other in session.recipe.evaluate.sets:
        prompts = other.prompts or session.task.size(other.name)
        assert prompts is not None  # a set is finite
        yield ProblemSet(split=other.name, prompts=prompts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What came of evaluating the weights that the engine holds."""

    rows: list[Row]
    """Lines of `eval.jsonl`, one for each set, mode and precision."""
    samples: list[Row]
    """Lines of `samples.jsonl`."""
    last: Rewards
    """The rewards of the last set, mode and precision. Where the verifier failed too often, the others are not made."""


def evaluation(session: Session, *, every_mode: bool) -> Evaluation:
    """Evaluate the weights that the engine holds; `require_rewards` then says whether the verifier may go on.

    Args:
        every_mode: sampled and greedy, in the engine's precision and unquantised; else only sampled, in the engine's.
    """
    rows: list[Row] = []
    samples: list[Row] = []
    made: list[Rewards] = []
    limit = session.recipe.verifier.max_failures
    asked = [
        (precision, engine, mode, problems)
        for precision, engine in _engines(session, every_mode).items()
        for mode in (("sampled", "greedy") if every_mode else ("sampled",))
        for problems in problem_sets(session)
    ]
    for precision, engine, mode, problems in asked:
        row, groups, rewards = _evaluation_row(session, engine, problems, greedy=mode == "greedy")
        rows.append({"set": problems.split, "mode": mode, "precision": precision, **row})
        made.append(rewards)
        failing = too_many_failures(rewards, limit=limit)
        if failing or not samples:
            samples = sample_rows(session, groups, rewards, first=_SHOWN)
        if failing:
            break
    return Evaluation(rows=rows, samples=samples, last=made[-1])


def _evaluation_row(
    session: Session, engine: Engine, problems: ProblemSet, *, greedy: bool
) -> tuple[Row, list[Group], Rewards]:
    options = session.recipe.evaluate
    share, groups, rewards = evaluate(session, engine, problems=problems, samples=options.samples, greedy=greedy)
    earned, known = mean_reward(rewards.values, rewards.known), rewards.values[rewards.known]
    samples = 1 if greedy else options.samples
    row = {
        "accuracy": share.value,
        "low": share.low,
        "high": share.high,
        "reward": earned.value,
        "reward_low": earned.low,
        "reward_high": earned.high,
        "reward_max": written(float(known.max())) if len(known) else None,
        "prompts": problems.prompts,
        "samples": samples,
        "failures": len(rewards.failed),
        **(several(session, groups, rewards) if samples > 1 else {}),
    }
    return row, groups, rewards


def several(session: Session, groups: Sequence[Group], rewards: Rewards) -> Row:
    """pass@k and maj@k of several samples; those that are not defined are left out."""
    there = [[place for place, has in enumerate(row) if has] for row in rewards.known.tolist()]
    right = (rewards.values >= session.recipe.task.correct_at).tolist()
    correct = [[row[place] for place in places] for row, places in zip(right, there, strict=True)]
    answers = [
        [_answer(session, group, place) for place in places] for group, places in zip(groups, there, strict=True)
    ]
    found: Row = {}
    for k in sizes(rewards.known.shape[1]):
        found |= {f"pass@{k}": pass_at(k, correct), f"maj@{k}": maj_at(k, answers, correct)}
    return {name: value for name, value in found.items() if value is not None}


def _answer(session: Session, group: Group, place: int) -> str | None:
    completion = group.completions[place]
    return session.task.final_answer(response_text(session, completion), context_of(group, completion))


def _engines(session: Session, every_mode: bool) -> dict[str, Engine]:
    """The run's engine and, where it is another, the embedded one unquantised on the same weights."""
    options = session.recipe.engine
    own = options.precision if session.engine.facts["kv_cache"] == "native" else f"{options.precision}+kv"
    own = own if options.kind == "local" else f"{options.kind}-{own}"
    engines: dict[str, Engine] = {own: session.engine}
    if every_mode and own != "native":
        engines["native"] = unquantised_engine(session.recipe, session.policy, ends=session.ends)
    return engines
