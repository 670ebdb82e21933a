"""What a run measures, and where the numbers go.

`METRICS` names every number of a global step, once; `docs/metrics.md` is printed from it (``python -m
steadyrl.measure.glossary``). `LOGS` has the fields of every JSON Lines file of a run directory.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from steadyrl.measure import trouble


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a run: its name in the files, its unit, and its meaning."""

    name: str
    unit: str
    doc: str


_RATIO = (
    ("k1", "nats", "Mean of −log ρ: estimates a KL divergence; may come out negative"),
    ("k3", "nats", "Mean of ρ − 1 − log ρ: the same, steadier and never negative"),
    ("k3_margin", "nats", "Half the 95% interval of k3, over responses"),
    ("chi2", "–", "Mean of (ρ − 1)²: estimates the χ² divergence"),
    ("mean", "ratio", "Mean of ρ"),
    ("max", "ratio", "Largest ρ"),
    ("ess", "share", "Effective sample size over token count n: (Σρ)²/(n Σρ²)"),
    (
        "ess_sequences",
        "share",
        "Effective sample size over the number m of responses, of W = Π ρ over each response: (ΣW)²/(m ΣW²)",
    ),
    ("p01", "ratio", "Quantile 0.01 of ρ"),
    ("p50", "ratio", "Median of ρ"),
    ("p99", "ratio", "Quantile 0.99 of ρ"),
    ("tail_2", "share", "Tokens with ρ outside [1/2, 2]"),
    ("tail_5", "share", "Tokens with ρ outside [1/5, 5]"),
)
"""What is said of each factor of eq. 5 and of their product: `algo.ledger.describe`."""


def _factor(prefix: str, ratio: str, over: str) -> tuple[Metric, ...]:
    return tuple(Metric(f"{prefix}/{name}", unit, f"{doc}; ρ = {ratio}, {over}.") for name, unit, doc in _RATIO)


METRICS: tuple[Metric, ...] = (
    Metric("step", "steps", "Global steps taken, this one included: the first is 1."),
    Metric("policy_version", "versions", "Version of the weights that sampled this step."),
    Metric("reward/mean", "reward", "Mean reward of the step's responses that have one."),
    Metric("reward/min", "reward", "Lowest reward of the step."),
    Metric("reward/max", "reward", "Highest reward of the step."),
    Metric("reward/accuracy", "share", "Share of those responses with reward ≥ `task.correct_at`."),
    Metric("reward/failures", "responses", "Responses without a reward: the verifier raised, hung or returned NaN."),
    Metric("reward/uniform_groups", "share", "Share of groups whose rewards are all equal: no gradient."),
    Metric("reward/<name>", "–", "Mean of a further number that the verifier returned, by its name."),
    Metric("response/length", "tokens", "Mean length of a response."),
    Metric("response/truncated", "share", "Share of responses cut at the length limit."),
    Metric("policy/entropy", "nats", "E_{y<t∼μ}[−Σ_w π(w) log π(w)] over the whole vocabulary, π = π_old."),
    *_factor("mismatch", "π_old/μ", "over all tokens of the step; under R3, π_old is the replayed one"),
    Metric("mismatch/abs_mean", "nats", "Mean of |log π_old − log μ|."),
    Metric("mismatch/abs_max", "nats", "Largest |log π_old − log μ|."),
    Metric("mismatch/k1_margin", "nats", "Half the 95% interval of `mismatch/k1`, over responses."),
    *_factor("staleness", "π_θ/π_old", "over the step's updates"),
    *_factor("weight", "π_θ/μ_old", "over the step's updates, before truncation"),
    Metric(
        "weight/truncated",
        "share",
        "Share of tokens whose weight is truncated, or set to 0 outside its band.",
    ),
    Metric(
        "surrogate/delta",
        "reward",
        "Δ of J(π) − J(μ) = E_μ[R Σ(r−1)] − Δ, r = π_θ/μ_old: how far the token level misses the sequence level, in "
        "value. Mean over all responses of the step that have a reward, each weighed by R less the mean R of the "
        "others in its group; R itself would have the same mean.",
    ),
    Metric("surrogate/delta_low", "reward", "Lower end of the 95% interval of Δ."),
    Metric("surrogate/delta_high", "reward", "Upper end of the 95% interval of Δ."),
    Metric(
        "surrogate/delta_bound",
        "reward",
        "Mean of |R less that baseline| Σ|r−1||1 − Π r of the tokens behind|: |Δ| at most.",
    ),
    Metric("surrogate/value_gap", "ratio", "Mean of |Π r − (1 + Σ(r−1))| over the responses in the step's updates."),
    Metric(
        "clip/low",
        "share",
        "Share of tokens with Â < 0 that the objective's trust region masks; MiniRL's is π_θ/π_old ≥ 1 − ε_low there.",
    ),
    Metric("clip/high", "share", "Share of tokens with Â > 0 that it masks; MiniRL's is π_θ/π_old ≤ 1 + ε_high there."),
    Metric(
        "routes/disagreement",
        "share",
        "Share of (computed position, layer) expert sets, prompts included, that differ between the rollout engine's "
        "and the trainer's own choice; under R3 the choice it would have made above replayed layers. Absent for dense "
        "models.",
    ),
    Metric("routes/layer_<n>", "share", "The same of the n-th mixture-of-experts layer, counted from 0."),
    Metric(
        "routes/margin",
        "score",
        "Where the sets differ, mean gap between the k-th and the k+1-th score of the trainer's router.",
    ),
    Metric(
        "routes/unrouted",
        "share",
        "Share of fed positions for which the engine left out experts of a layer; the trainer routes there by itself.",
    ),
    Metric(
        "replay/k3_natural",
        "nats",
        "D_KL[μ‖π_old] by k3 with the trainer's own experts, on the responses to one prompt, another at every step.",
    ),
    Metric("replay/k3_replayed", "nats", "The same with the rollout's experts."),
    Metric("replay/removed", "share", "1 − k3_replayed/k3_natural: what replay removes; noisy, can be negative."),
    Metric("update/objective", "–", "Value of the maximised surrogate, mean over the step's updates."),
    Metric("update/grad_norm", "norm", "Gradient norm before clipping, mean over the step's updates."),
    Metric("update/skipped", "updates", "Updates skipped because loss or gradient was not finite."),
    Metric(
        "update/moved",
        "share",
        "Weights that the step's updates changed, of those with a gradient that is not zero; at most 65,536 of a "
        "tensor are looked at. About 1 in float32; low where bfloat16 rounds small updates away.",
    ),
    Metric("update/learning_rate", "rate", "Learning rate of the step's last update."),
    Metric("update/padding", "share", "Share of padding among the cells that attention computes."),
    Metric(
        "update/computed",
        "ratio",
        "Positions computed for each fed token: below 1 where responses share their prompt.",
    ),
    *(Metric(f"trouble/{kind.name}", "0 or 1", kind.rule) for kind in trouble.KINDS),
    Metric("seconds/sampling", "s", "Sampling the responses."),
    Metric("seconds/rewards", "s", "The rewards of the responses, from the verifier."),
    Metric(
        "seconds/logprobs",
        "s",
        "The trainer's forwards with θ_old, log π_old and the routes, but for the first mini-batch's, which is its "
        "update's as well; and those that measure what replay removes.",
    ),
    Metric("seconds/update", "s", "The N gradient updates."),
    Metric("seconds/sync", "s", "Handing the new weights to the engine."),
    Metric("seconds/step", "s", "The whole step, evaluations and checkpoints left out."),
    Metric("throughput/tokens_per_second", "tokens/s", "Sampled response tokens over `seconds/step`."),
    Metric("memory/peak_gib", "GiB", "Peak memory of the process, or of its GPU."),
)

LEDGER_FIELDS: tuple[Metric, ...] = (
    Metric("step", "steps", "Global steps taken, this one included."),
    Metric(
        "factor",
        "–",
        "ρ: `mismatch` is π_old/μ_old, over all tokens of the step; `staleness` is π_θ/π_old and `product` is "
        "π_θ/μ_old, both before truncation, over the tokens in the step's updates.",
    ),
    Metric(
        "split",
        "–",
        "What the tokens are sorted by: `all`, not at all, with the numbers that `metrics.jsonl` calls mismatch, "
        "staleness and weight; `position` in the response; `advantage`, its sign; `version`, the gradient steps "
        "between the weights that sampled a token and those that compute it here; `routes`, of mixtures of experts: "
        "whether both engines chose the same experts in every layer.",
    ),
    Metric(
        "bucket",
        "–",
        "`all`; where a range of positions or versions begins, up to the next: 0, 16, 64, 256, 1024, 4096, 16384 and "
        "0, 1, 2, 4, 8; `negative`, `zero`, `positive`; `agreed`, `differed`, `unrouted`. Empty ones have no line.",
    ),
    Metric("tokens", "tokens", "Tokens in the bucket."),
    *(Metric(name, unit, f"{doc}.") for name, unit, doc in _RATIO),
    Metric("k1_margin", "nats", "Half the 95% interval of k1, over responses."),
    Metric("abs_mean", "nats", "Mean of |log ρ|."),
    Metric("abs_max", "nats", "Largest |log ρ|."),
)

EVAL_FIELDS: tuple[Metric, ...] = (
    Metric("step", "steps", "Global steps taken before the evaluation; 0 is before the first."),
    Metric("set", "–", "`held_out`, or the name of one of `evaluate.sets`."),
    Metric("mode", "–", "`sampled` (the recipe's temperature, top-p and top-k) or `greedy`."),
    Metric("precision", "–", "Precision of the engine that answered: `native`, `fp8`, …"),
    Metric("accuracy", "share", "Mean over prompts and samples of reward ≥ `task.correct_at`."),
    Metric("low", "share", "Lower end of the 95% interval of the accuracy."),
    Metric("high", "share", "Upper end of the 95% interval of the accuracy."),
    Metric("reward", "reward", "Mean over prompts and samples of the reward."),
    Metric("reward_low", "reward", "Lower end of the 95% interval of the mean reward."),
    Metric("reward_high", "reward", "Upper end of the 95% interval of the mean reward."),
    Metric("reward_max", "reward", "Highest reward of any response."),
    Metric("prompts", "prompts", "Prompts of the set that were asked."),
    Metric("samples", "responses", "Responses per prompt."),
    Metric(
        "failures",
        "responses",
        "Responses on which the verifier raised, hung or returned NaN. They have no reward and count in no mean; a "
        "prompt without any reward is left out.",
    ),
    Metric(
        "pass@<n>",
        "share",
        "Of several samples: chance that of n responses to a prompt at least one is right, 1 − C(m−c, n)/C(m, n) with "
        "c of its m responses right; mean over the prompts that have m ≥ n. n is 2, 4, 8, … and the number of samples; "
        "pass@1 is the accuracy.",
    ),
    Metric(
        "maj@<n>",
        "share",
        "Of several samples: how often the most frequent final answer of n responses is right. Mean over the blocks of "
        "n responses of a prompt, then over prompts; of answers that are equally frequent, the mean. A response "
        "without an answer has no vote. Absent where no response has an answer.",
    ),
)

COLD_START_FIELDS: tuple[Metric, ...] = (
    Metric("step", "steps", "Gradient steps of the cold start taken."),
    Metric("loss", "nats", "Mean −log π per token of the worked solutions."),
    Metric("accuracy", "share", "Sampled accuracy on held-out prompts; absent where it was not looked at."),
)

FAILURE_FIELDS: tuple[Metric, ...] = (
    Metric("step", "steps", "Global step of the responses."),
    Metric("reason", "–", "Why the verifier failed, such as `raised ValueError: …` or `took longer than 10 s`."),
    Metric("responses", "responses", "How many responses of the step it failed for in this way."),
)

SAMPLE_FIELDS: tuple[Metric, ...] = (
    Metric("step", "steps", "Global steps taken before the evaluation that sampled it."),
    Metric("question", "–", "What the model was asked."),
    Metric("answer", "–", "The reference answer."),
    Metric("completion", "–", "The model's response, cut in the middle beyond 8 KB."),
    Metric("reward", "reward", "Its reward; null where the verifier failed."),
    Metric("finish_reason", "–", "`stop`: it ended by itself; `length`: it was cut at the limit."),
    Metric("failure", "–", "Why the verifier failed, or null. Of responses that failed, up to 32 are added."),
)

ROLLOUT_FIELDS: tuple[Metric, ...] = (
    Metric("step", "steps", "Global step that sampled and trained on the response; the first is 1."),
    Metric("problem", "–", "Index of the problem in the training split."),
    Metric("sample", "–", "Which of the group's responses, counted from 0."),
    Metric("prompt", "–", "The prompt as the model saw it, cut in the middle beyond 8 KB."),
    Metric("answer", "–", "The reference answer."),
    Metric("response", "–", "The response, without end tokens; cut in the middle beyond 8 KB."),
    Metric("left_out", "characters", "How many characters of the response were cut out."),
    Metric("tokens", "tokens", "Length of the response."),
    Metric("finish_reason", "–", "`stop`: it ended by itself; `length`: it was cut at the limit."),
    Metric("reward", "reward", "Its reward; null where the verifier failed."),
    Metric("reward/<name>", "–", "A further number that the verifier returned, by its name."),
    Metric("advantage", "–", "Â, relative to its group; 0 moves nothing."),
    Metric("policy_version", "versions", "Version of the weights that sampled it."),
    Metric("failure", "–", "Why the verifier failed, or null."),
)
"""Of `rollout.prompts` groups, `rollouts.groups` of every `rollouts.every` steps; and each response without a
reward, up to 32 a step."""


LOGS: dict[str, tuple[str, tuple[Metric, ...]]] = {
    "metrics.jsonl": ("one line per global step", METRICS),
    "ledger.jsonl": ("one line per global step, factor, split and bucket", LEDGER_FIELDS),
    "eval.jsonl": ("one line per evaluation, set, mode and precision", EVAL_FIELDS),
    "cold_start.jsonl": ("one line per gradient step", COLD_START_FIELDS),
    "failures.jsonl": ("one line per step and reason, where the verifier failed", FAILURE_FIELDS),
    "samples.jsonl": ("a few responses of every evaluation", SAMPLE_FIELDS),
    "rollouts.jsonl": ("a few groups of every step, one line per response", ROLLOUT_FIELDS),
}
"""The JSON Lines files of a run directory: what a line is, and the fields that it may have."""

_PREFACE = """\
# What a run measures

<!-- Printed by `python -m steadyrl.measure.glossary`; edit src/steadyrl/measure/glossary.py. -->

A run directory holds JSON Lines files: one object per line, each with its `step`. NaN and infinities are
written as `null`. Logarithms are natural. A mean or share covers all response tokens, or all responses, of the step.
Those of the updates (`staleness/`, `weight/`, `surrogate/`, `clip/`) cover only those whose advantage is not 0.
μ is the policy of the sampling engine, π the policy of the trainer. θ_old are the weights that sampled, θ the current
weights. Both policies are taken at the sampling temperature.
"""


def docs() -> str:
    """The page `docs/metrics.md`."""
    parts = [_PREFACE]
    for name, (what, fields) in LOGS.items():
        parts.append(f"## `{name}`: {what}\n")
        grouped = groupby(fields, key=lambda metric: metric.name.rpartition("/")[0] if fields is METRICS else "")
        for prefix, group in grouped:
            parts += [f"### {prefix}\n" * bool(prefix), _table(group)]
    return "\n".join(filter(None, parts))


def _table(metrics: Iterable[Metric]) -> str:
    rows = [(f"`{m.name}`", m.unit, m.doc.replace("|", "\\|")) for m in metrics]
    return "".join(f"| {' | '.join(row)} |\n" for row in [("name", "unit", "meaning"), ("---",) * 3, *rows])


if __name__ == "__main__":
    print(docs(), end="")
