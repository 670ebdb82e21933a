"""Held-out accuracy, avg@k, with its uncertainty."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from steadyrl.engine.base import Engine
from steadyrl.metrics import Row
from steadyrl.model.text import decode_response
from steadyrl.rollout import Group, Rewards, sample_groups, score_groups
from steadyrl.session import Session, unquantised_engine
from steadyrl.types import Sampling


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """A mean over prompts with a 95% interval."""

    value: float
    """Share of right answers."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""


def accuracy(correct: Float[Tensor, "prompts samples"]) -> Accuracy:
    """avg@k and its Wilson interval.

    Samples of one prompt are not independent, so the interval uses the effective number of samples p(1−p)/s², with s
    the standard error of the mean of the prompts' means, and at most the samples there are; where those means are all
    equal, the number of prompts.
    """
    means = correct.mean(dim=1).double()
    prompts, p = len(means), float(means.mean())
    variance = float(means.var(correction=1)) / prompts if prompts > 1 else 0.0
    n = min(p * (1.0 - p) / variance, float(correct.numel())) if variance > 0.0 else float(prompts)
    z = 1.959964
    centre = (p + z * z / (2.0 * n)) / (1.0 + z * z / n)
    half = z / (1.0 + z * z / n) * math.sqrt(p * (1.0 - p) / n + z * z / (4.0 * n * n))
    return Accuracy(value=p, low=max(0.0, min(p, centre - half)), high=min(1.0, max(p, centre + half)))


def evaluate(
    session: Session, engine: Engine, *, prompts: int, samples: int, greedy: bool
) -> tuple[Accuracy, list[Group], Rewards]:
    """Let an engine answer the first held-out problems; the same ones, with the same random numbers, at any step.

    A response is right if its reward is at least 1.
    """
    options = session.recipe.evaluate
    sampling = Sampling(
        temperature=0.0 if greedy else options.temperature,
        max_new_tokens=session.recipe.rollout.max_new_tokens,
        top_p=options.top_p,
        top_k=options.top_k,
    )
    samples = 1 if greedy else samples
    groups = sample_groups(
        session, engine, "held_out", range(prompts), responses=samples, sampling=sampling, key="evaluate"
    )
    rewards = score_groups(session, "held_out", groups)
    return accuracy((rewards.values >= 1.0).float()), groups, rewards


def evaluation_rows(session: Session, *, every_mode: bool) -> tuple[list[Row], list[Row]]:
    """Rows of `eval.jsonl`, and a few of `samples.jsonl`, for the weights that the engine holds.

    Args:
        every_mode: sampled and greedy, in the engine's precision and unquantised; else only sampled, in the engine's.
    """
    options = session.recipe.evaluate
    rows, shown = [], []
    for precision, engine in _engines(session, every_mode).items():
        for mode in ("sampled", "greedy") if every_mode else ("sampled",):
            result, groups, rewards = evaluate(
                session, engine, prompts=options.prompts, samples=options.samples, greedy=mode == "greedy"
            )
            rows.append(
                {
                    "mode": mode,
                    "precision": precision,
                    "accuracy": result.value,
                    "low": result.low,
                    "high": result.high,
                    "prompts": options.prompts,
                    "samples": 1 if mode == "greedy" else options.samples,
                    "failures": len(rewards.failures),
                }
            )
            shown = shown or _samples(session, groups[:8], rewards)
    return rows, shown


def _engines(session: Session, every_mode: bool) -> dict[str, Engine]:
    """The run's engine and, where it is another, the embedded one unquantised on the same weights."""
    options = session.recipe.engine
    own = options.precision if session.engine.facts["kv_cache"] == "native" else f"{options.precision}+kv"
    own = own if options.kind == "local" else f"{options.kind}-{own}"
    engines: dict[str, Engine] = {own: session.engine}
    if every_mode and own != "native":
        engines["native"] = unquantised_engine(session.recipe, session.policy)
    return engines


def _samples(session: Session, groups: Sequence[Group], rewards: Rewards) -> list[Row]:
    return [
        {
            "question": group.example.question,
            "answer": group.example.answer,
            "completion": decode_response(session.policy.tokenizer, group.completions[0].token_ids),
            "reward": float(earned[0]),
        }
        for group, earned in zip(groups, rewards.values, strict=False)
    ]
