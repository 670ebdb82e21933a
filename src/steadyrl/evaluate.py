"""What the policy earns on held-out problems: accuracy, mean reward, pass@k and maj@k, with their uncertainty."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from steadyrl.engine.base import Engine
from steadyrl.measure.estimates import Estimate, accuracy, maj_at, mean_reward, pass_at, sizes
from steadyrl.recipe import Recipe
from steadyrl.rollout.groups import Group, Rewards
from steadyrl.rollout.rollouter import Rollouter
from steadyrl.run.logs import Row
from steadyrl.run.progress import Bar
from steadyrl.run.rows import sample_rows, written
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What came of evaluating the weights that the engine holds."""

    rows: list[Row]
    """Lines of `eval.jsonl`, one for each set, mode and precision."""
    samples: list[Row]
    """Lines of `samples.jsonl`."""
    last: Rewards
    """The rewards of the last set, mode and precision. Where the verifier failed too often, the others are not made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluator:
    """Asks for the first problems of each set; the same ones, with the same random numbers, at any step."""

    recipe: Recipe
    """The recipe of the run."""
    rollouter: Rollouter
    """With the engine of the run."""
    unquantised: Callable[[], Engine]
    """Makes an engine that rounds nothing, with the trained weights of now."""

    def accuracy(self) -> float:
        """Return the sampled accuracy on the held-out problems, once each, by the engine of the run.

        Raises:
            TaskError: the verifier fails too often.
        """
        _, rewards = self._ask(self.rollouter, self._held_out(), samples=1, greedy=False)
        self._require(rewards)
        return self._share(rewards).value

    def evaluate(self, *, every_mode: bool, bar: Callable[[str], Bar]) -> Evaluation:
        """Evaluate the weights that the engine holds; `require` then says whether the verifier may go on.

        Args:
            every_mode: sampled and greedy, in the engine's precision and unquantised; else only sampled, in the
                engine's.
            bar: shows what is being evaluated, such as `Display.bar`.
        """
        rows: list[Row] = []
        samples: list[Row] = []
        made: list[Rewards] = []
        asked = [
            (precision, rollouter, mode, problems)
            for precision, rollouter in self._rollouters(every_mode).items()
            for mode in (("sampled", "greedy") if every_mode else ("sampled",))
            for problems in self.sets()
        ]
        for number, (precision, rollouter, mode, problems) in enumerate(asked, start=1):
            count = 1 if mode == "greedy" else self.recipe.evaluate.samples
            with bar(f"evaluating {problems.split}, {mode}, {precision} ({number} of {len(asked)})"):
                groups, rewards = self._ask(rollouter, problems, samples=count, greedy=mode == "greedy")
            row = self._row(groups, rewards, problems, samples=count)
            rows.append({"set": problems.split, "mode": mode, "precision": precision, **row})
            made.append(rewards)
            failing = rewards.too_many_failures(limit=self.recipe.verifier.max_failures)
            if failing or not samples:
                samples = sample_rows(rollouter.text, groups, rewards, first=_SHOWN)
            if failing:
                break
        return Evaluation(rows=rows, samples=samples, last=made[-1])

    def require(self, found: Evaluation) -> None:
        """Stop where the verifier failed too often.

        Raises:
            TaskError: it did.
        """
        self._require(found.last)

    def sets(self) -> Iterator[ProblemSet]:
        """Yield the held-out problems, and every set of the recipe."""
        yield self._held_out()
        for other in self.recipe.evaluate.sets:
            prompts = other.prompts or self.rollouter.task.size(other.name)
            assert prompts is not None  # a set is finite
            yield ProblemSet(split=other.name, prompts=prompts)

    def several(self, groups: Sequence[Group], rewards: Rewards) -> Row:
        """Return pass@k and maj@k of several samples; those that are not defined are left out."""
        there = [[place for place, has in enumerate(row) if has] for row in rewards.known.tolist()]
        right = (rewards.values >= self.recipe.task.correct_at).tolist()
        correct = [[row[place] for place in places] for row, places in zip(right, there, strict=True)]
        answers = [
            [self._answer(group, place) for place in places] for group, places in zip(groups, there, strict=True)
        ]
        found: Row = {}
        for k in sizes(rewards.known.shape[1]):
            found |= {f"pass@{k}": pass_at(k, correct), f"maj@{k}": maj_at(k, answers, correct)}
        return {name: value for name, value in found.items() if value is not None}

    def _held_out(self) -> ProblemSet:
        return ProblemSet(split="held_out", prompts=self.recipe.evaluate.prompts)

    def _require(self, rewards: Rewards) -> None:
        rewards.require(limit=self.recipe.verifier.max_failures)

    def _ask(
        self, rollouter: Rollouter, problems: ProblemSet, *, samples: int, greedy: bool
    ) -> tuple[list[Group], Rewards]:
        options = self.recipe.evaluate
        sampling = Sampling(
            temperature=0.0 if greedy else options.temperature,
            max_new_tokens=self.recipe.rollout.max_new_tokens,
            top_p=options.top_p,
            top_k=options.top_k,
        )
        indices = range(problems.prompts)
        groups = rollouter.groups(problems.split, indices, responses=samples, sampling=sampling, key=problems.key)
        return groups, rollouter.rewards(problems.split, groups)

    def _share(self, rewards: Rewards) -> Estimate:
        """The share of right responses: those with a reward of at least `task.correct_at`."""
        return accuracy((rewards.values >= self.recipe.task.correct_at).float(), rewards.known)

    def _row(self, groups: Sequence[Group], rewards: Rewards, problems: ProblemSet, *, samples: int) -> Row:
        share, earned = self._share(rewards), mean_reward(rewards.values, rewards.known)
        known = rewards.values[rewards.known]
        return {
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
            **(self.several(groups, rewards) if samples > 1 else {}),
        }

    def _answer(self, group: Group, place: int) -> str | None:
        completion = group.completions[place]
        return self.rollouter.task.final_answer(self.rollouter.text(completion), group.context(completion))

    def _rollouters(self, every_mode: bool) -> dict[str, Rollouter]:
        """The run's and, where its engine rounds, one with the embedded engine unquantised on the same weights."""
        options, own = self.recipe.engine, self.rollouter
        name = options.precision if own.engine.facts["kv_cache"] == "native" else f"{options.precision}+kv"
        kind = options.kind.rpartition(":")[2]  # of a class of the user's own, its name
        name = name if kind == "local" else f"{kind}-{name}"
        rollouters = {name: own}
        if every_mode and name != "native":
            rollouters["native"] = replace(own, engine=self.unquantised())
        return rollouters
