"""How far the token-level objective is from the sequence-level one: eq. 1 to 4 of arXiv 2512.01374, measured.

Take one response with ratios r_t = π_θ(y_t)/μ_old(y_t). The sequence level weighs its reward by Π r_t. The token level
weighs it, to first order, by 1 + Σ(r_t − 1). The difference is that of arXiv 2602.04879, Theorem 3.1, for one response:

    1 + Σ_t (r_t − 1) − Π_t r_t = Σ_t (r_t − 1)(1 − Π_{j>t} r_j)

so that J(π) − J(μ) = E_μ[R Σ_t (r_t − 1)] − Δ with Δ = E_μ[R · difference], exactly. The difference has the mean 0
under μ, so a baseline that does not depend on the response may be taken from R: `advantage.leave_one_out` does so.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from steadyrl.algo.ratio import BEYOND, begins, sum_from_start, sum_over_response

_LARGEST = 300.0
"""A product of ratios saturates at e^±300: the sum of its squares is still a float64."""


class Interval(NamedTuple):
    """An estimate and its 95% interval."""

    value: float
    low: float
    high: float


class ValueGap(NamedTuple):
    """The token level against the sequence level, by response, in float64."""

    difference: Float[Tensor, "responses"]
    """1 + Σ(r_t − 1) − Π r_t; its product with R has the mean Δ."""
    bound: Float[Tensor, "responses"]
    """Σ_t |r_t − 1| · |1 − Π_{j>t} r_j|, at least |difference|: no signs cancel."""


def value_gap(log_ratio: Float[Tensor, "tokens"], response: Int[Tensor, "tokens"]) -> ValueGap:
    """|difference| is |Π r − (1 + Σ(r − 1))|. Costs two running sums; a product saturates at e^±300.

    `log_ratio` is log π_θ/μ_old (`ratio.product`); with the staleness alone, this is the gap of that factor.
    """
    logs = log_ratio.double().clamp(-(BEYOND**2), BEYOND**2)  # else inf − inf
    after = (sum_over_response(logs, response) - sum_from_start(logs, response)).clamp(-_LARGEST, _LARGEST)
    parts = -logs.clamp(-_LARGEST, _LARGEST).expm1() * after.expm1()  # (r_t − 1)(1 − Π_{j>t} r_j)
    one = begins(response)
    return ValueGap(sum_over_response(parts, response)[one], sum_over_response(parts.abs(), response)[one])


def surrogate_error(
    gap: ValueGap, rewards: Float[Tensor, "responses"], *, responses: int | None = None
) -> dict[str, float]:
    """Estimates of Δ, the error of the surrogate's value, in units of the reward.

    Args:
        gap: of the responses that were computed at θ.
        rewards: R of each response, or R minus the mean R of the others in its group. Both have the mean Δ.
        responses: the number of all responses. Those that are not in `gap` add 0, because their reward equals that of
            the others in their group. None: as many as in `gap`.

    Returns:
        `delta` and the ends of its 95% interval, `delta_low` and `delta_high`, over the responses; `delta_bound`, the
        mean of |R| · bound, which |Δ| does not exceed; `value_gap`, the mean |Π r − (1 + Σ(r − 1))|.
    """
    wide = rewards.double()
    counts = wide != 0
    absent = (len(wide) if responses is None else responses) - int(counts.sum())
    delta = mean_interval(pad((wide * gap.difference)[counts], (0, absent)))
    return {
        "delta": delta.value,
        "delta_low": delta.low,
        "delta_high": delta.high,
        "delta_bound": pad((wide.abs() * gap.bound)[counts], (0, absent)).mean().item(),
        "value_gap": gap.difference.abs().mean().item(),
    }


def worst_delta(*, tokens: int, divergence: float, reward: float) -> float:
    """2 ξ T(T−1) D²: |Δ| at most, if no reward exceeds ξ and no token's total variation exceeds D, at T tokens.

    From |r_t − 1| with the mean 2D, times 1 − Π_{j>t} r_j, whose mean size is at most 2(T−t)D; summed over t.
    """
    return 2.0 * reward * tokens * (tokens - 1) * divergence**2


def mean_interval(values: Float[Tensor, "samples"]) -> Interval:
    """The mean of independent values, with a normal 95% interval; a single value has the interval (−∞, ∞)."""
    mean = values.mean().item()
    if len(values) < 2:
        return Interval(mean, -torch.inf, torch.inf)
    margin = 1.96 * (values.var() / len(values)).sqrt().item()
    return Interval(mean, mean - margin, mean + margin)


class GradientGap(NamedTuple):
    """The token-level gradient g against the sequence-level gradient G."""

    cosine: Interval
    """⟨g, G⟩ / (‖g‖ ‖G‖)."""
    relative_error: Interval
    """‖g − G‖ / ‖G‖."""


def gram(
    token: Float[Tensor, "parts parameters"], sequence: Float[Tensor, "parts parameters"]
) -> Float[Tensor, "2 2 parts parts"]:
    """Inner products of all parts of both gradients: [0] is the token level, [1] the sequence level.

    It is a sum over parameters: for a model too large to flatten, add up the results of its tensors.
    """
    both = torch.stack([token, sequence]).double()
    return torch.einsum("aip,bjp->abij", both, both)


def gradient_gap(products: Float[Tensor, "2 2 parts parts"], *, resamples: int = 1000, seed: int = 0) -> GradientGap:
    """Cosine and relative error of the two gradients, with a bootstrap interval over the parts.

    A part is one response, or a block of responses; blocks have about equal sizes. Both gradients are sums over the
    parts, and `products` is their `gram`. A resample draws as many parts with replacement, the same for both gradients,
    and needs only inner products. The interval is between quantiles of the resamples. If the gap is small against the
    noise of the parts, the noise adds to ‖g − G‖, and the interval may be above the value.

    Raises:
        ValueError: the sequence-level gradient, or the token-level one, is zero or not finite.
    """
    *_, parts = products.shape
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(parts, (resamples, parts), generator=generator)
    counts = torch.zeros(resamples, parts).scatter_add(1, draws, torch.ones(resamples, parts))
    weights = torch.cat([torch.ones(1, parts), counts]).to(products)  # the first row is the batch itself
    norms = torch.einsum("ri,abij,rj->abr", weights, products, weights)
    token, cross, sequence = norms[0, 0], norms[0, 1], norms[1, 1]
    sizes = f"{token[0].item():g} (token level) and {sequence[0].item():g} (sequence level)"
    if not norms.isfinite().all():
        raise ValueError(
            f"a gradient is not finite: the squared norms are {sizes}; the policies are so far apart that a product of "
            "ratios overflows, or a log-probability is broken"
        )
    if not (token[0] > 0 and sequence[0] > 0):
        raise ValueError(
            f"the squared norms of the gradients are {sizes}; both must be above 0: take responses with "
            "advantages that do not cancel"
        )
    cosine = (cross / (token * sequence).sqrt()).clamp(-1.0, 1.0)
    error = ((token - 2.0 * cross + sequence).clamp(min=0.0) / sequence).sqrt()
    return GradientGap(_quantiles(cosine), _quantiles(error))


def _quantiles(values: Float[Tensor, "draws"]) -> Interval:
    """The first value with the 95% interval of the others, those without a direction left out."""
    drawn = values[1:][values[1:].isfinite()]
    low, high = drawn.quantile(torch.tensor([0.025, 0.975], dtype=drawn.dtype, device=drawn.device)).tolist()
    return Interval(values[0].item(), low, high)
