"""Ratios of two policies, as logs: the two factors of eq. 5, arXiv 2512.01374, per token or over several tokens.

    π_θ/μ_old = π_old/μ_old × π_θ/π_old: mismatch of the engines × staleness of the policy

`response` holds the number of the response that each token belongs to. The tokens of a response are contiguous and in
order. Sums are computed in float64, so the log of a product of 32,768 ratios is as exact as its terms.
"""

from math import inf, nan
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Level = Literal["token", "prefix", "lowest_prefix", "sequence", "geometric"]
"""Over which tokens of its response a token's ratio is taken; see `at_level`."""

BEYOND = 1e3
"""exp of it, and of its negative, is beyond every float: no log ratio needs to be larger."""


def mismatch(
    old_logprobs: Float[Tensor, "tokens"], rollout_logprobs: Float[Tensor, "tokens"]
) -> Float[Tensor, "tokens"]:
    """log π_old(y_t)/μ_old(y_t): how far the two engines differ on the same weights (first factor of eq. 5)."""
    return _over(old_logprobs, rollout_logprobs)


def staleness(logprobs: Float[Tensor, "tokens"], old_logprobs: Float[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
    """log π_θ(y_t)/π_old(y_t): how far the policy has moved since it sampled (second factor of eq. 5)."""
    return _over(logprobs, old_logprobs)


def product(logprobs: Float[Tensor, "tokens"], rollout_logprobs: Float[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
    """log π_θ(y_t)/μ_old(y_t): both factors of eq. 5 at once, with no need of π_old."""
    return _over(logprobs, rollout_logprobs)


def _over(one: Float[Tensor, "tokens"], other: Float[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
    """The log of a ratio; 0/0 is 0: what has no probability weighs nothing."""
    return (one - other).masked_fill((one == -inf) & (other == -inf), -inf)


def at_level(
    log_ratio: Float[Tensor, "tokens"], response: Int[Tensor, "tokens"], *, level: Level
) -> Float[Tensor, "tokens"]:
    """The log of the ratio that each token answers for.

    | level           | log of                | source                                            |
    |-----------------|-----------------------|---------------------------------------------------|
    | `token`         | r_t                   | eq. 3 and 4 of arXiv 2512.01374                   |
    | `prefix`        | Π_{s≤t} r_s           | the exact unbiased weight of a token              |
    | `lowest_prefix` | r_t · min_{s<t} r_s   | MinPRO, arXiv 2601.22718; the first token has r_1 |
    | `sequence`      | Π_s r_s               | eq. 1 and 2                                       |
    | `geometric`     | (Π_s r_s)^{1/\\|y\\|} | GSPO, arXiv 2507.18071                            |

    A product with a ratio of 0 is 0, even if another factor is infinite. A NaN shows at its own token and never in
    another response. After it, `prefix` treats its ratio as 1.
    """
    match level:
        case "token":
            return log_ratio
        case "prefix":
            return sum_from_start(log_ratio, response).masked_fill(_zero_so_far(log_ratio, response), -inf)
        case "lowest_prefix":
            return _lowest_prefix(log_ratio, response)
        case "sequence":
            return _log_product(log_ratio, response)
        case "geometric":
            return _log_product(log_ratio, response) / sum_over_response(torch.ones_like(log_ratio), response)


def times(one: Float[Tensor, "*tokens"], other: Float[Tensor, "*tokens"]) -> Float[Tensor, "*tokens"]:
    """The log of the product of two ratios, from their logs: 0 · inf is 0, where the sum of the logs would be NaN."""
    zero = ((one == -inf) & ~other.isnan()) | ((other == -inf) & ~one.isnan())
    return (one + other).masked_fill(zero, -inf)


def _log_product(log_ratio: Float[Tensor, "tokens"], response: Int[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
    """Σ over the tokens of the response, with the rule of `times`."""
    zero = log_ratio == -inf
    rest = sum_over_response(log_ratio.masked_fill(zero, 0.0), response)
    return times(rest, torch.zeros_like(rest).masked_fill(sum_over_response(zero.to(rest.dtype), response) > 0, -inf))


def _zero_so_far(log_ratio: Float[Tensor, "tokens"], response: Int[Tensor, "tokens"]) -> Bool[Tensor, "tokens"]:
    """Whether a ratio of 0 came before this token, or is its own; False at a NaN."""
    zero = (log_ratio == -inf).to(log_ratio.dtype)
    return (sum_from_start(zero, response) > 0) & ~log_ratio.isnan()


def begins(response: Int[Tensor, "tokens"]) -> Bool[Tensor, "tokens"]:
    """Whether a token is the first of its response."""
    found = torch.ones_like(response, dtype=torch.bool)
    found[1:] = response[1:] != response[:-1]
    return found


def first_tokens(response: Int[Tensor, "tokens"]) -> Int[Tensor, "tokens"]:
    """Index of the first token of each token's response."""
    index = torch.arange(len(response), device=response.device)
    return index.where(begins(response), 0).cummax(dim=0).values


def sum_over_response(values: Float[Tensor, "tokens"], response: Int[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
    """Σ over the tokens of the response, given to each of them."""
    wide, number = values.double(), begins(response).cumsum(dim=0) - 1
    return torch.zeros_like(wide).scatter_add(0, number, wide).index_select(0, number).to(values.dtype)


def sum_from_start(values: Float[Tensor, "tokens"], response: Int[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
    """Σ over the tokens of the response up to this one, itself included."""
    bounded = _bounded(values, BEYOND**2)  # the values may be squares of logs
    running = bounded.cumsum(dim=0)
    before = sum_over_response((running - bounded).where(begins(response), 0.0), response)
    return (running - before).to(values.dtype).masked_fill(values.isnan(), nan)


def _bounded(values: Float[Tensor, "tokens"], limit: float) -> Float[Tensor, "tokens"]:
    """What runs over all responses must be finite, or one would reach the next."""
    return values.double().clamp(-limit, limit).nan_to_num(nan=0.0)


def _lowest_prefix(log_ratio: Float[Tensor, "tokens"], response: Int[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
    """One running minimum over all responses. Each response is shifted below the one before it, which restarts it."""
    first = begins(response)
    below = _bounded(log_ratio, BEYOND) - 3.0 * BEYOND * first.cumsum(dim=0)
    lowest = log_ratio.index_select(0, below.cummin(dim=0).indices.roll(1))
    return times(log_ratio, lowest.masked_fill(first, 0.0))


def importance_weight(log_ratio: Float[Tensor, "tokens"], *, cap: float | None) -> Float[Tensor, "tokens"]:
    """min(exp(log_ratio), cap), without gradient: truncated importance sampling (TIS). None: no cap."""
    weight = log_ratio.detach().exp()
    return weight if cap is None else weight.clamp(max=cap)


def masked_weight(log_ratio: Float[Tensor, "tokens"], *, low: float, high: float) -> Float[Tensor, "tokens"]:
    """w = exp(log_ratio) where low ≤ w ≤ high, else 0; without gradient.

    With low = 0 this is masked importance sampling (MIS); with low > 0 the band of IcePop, arXiv 2510.18855, whose
    limits for π_old/μ_old are 0.5 and 5.
    """
    weight = log_ratio.detach().exp()
    return weight.masked_fill((weight < low) | (weight > high), 0.0)  # NaN stays in: it must be seen
