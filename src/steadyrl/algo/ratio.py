"""Ratios of two policies, as logs: the two factors of eq. 5, arXiv 2512.01374, per token or over several tokens.

    π_θ/μ_old = π_old/μ_old × π_θ/π_old: discrepancy of the engines × staleness of the policy

`response` numbers the response that each token belongs to; the tokens of a response are contiguous and in order.
Sums run in float64, so that the log of a product of 32,768 ratios is as good as its terms.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Level = Literal["token", "prefix", "lowest_prefix", "sequence", "geometric"]
"""Over which tokens of its response a token's ratio is taken; see `at_level`."""

_BEYOND = 1000.0
"""exp of it, and of its negative, is beyond every float: no log ratio needs to be larger."""


def discrepancy(
    old_logprobs: Float[Tensor, "tokens"], rollout_logprobs: Float[Tensor, "tokens"]
) -> Float[Tensor, "tokens"]:
    """log π_old(y_t)/μ_old(y_t): how far the two engines differ on the same weights (first factor of eq. 5)."""
    return old_logprobs - rollout_logprobs


def staleness(logprobs: Float[Tensor, "tokens"], old_logprobs: Float[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
    """log π_θ(y_t)/π_old(y_t): how far the policy has moved since it sampled (second factor of eq. 5)."""
    return logprobs - old_logprobs


def product(logprobs: Float[Tensor, "tokens"], rollout_logprobs: Float[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
    """log π_θ(y_t)/μ_old(y_t): both factors of eq. 5 at once, with no need of π_old."""
    return logprobs - rollout_logprobs


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

    A NaN reaches the tokens of its own response and no others.
    """
    match level:
        case "token":
            return log_ratio
        case "prefix":
            return sum_from_start(log_ratio, response)
        case "lowest_prefix":
            return _lowest_prefix(log_ratio, response)
        case "sequence":
            return sum_over_response(log_ratio, response)
        case "geometric":
            return _geometric(log_ratio, response)


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
    first = first_tokens(response)
    return _totals(values.double(), first)[first].to(values.dtype)


def sum_from_start(values: Float[Tensor, "tokens"], response: Int[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
    """Σ over the tokens of the response up to this one, itself included."""
    wide, first = values.double(), first_tokens(response)
    bounded = wide.clamp(-_BEYOND, _BEYOND).nan_to_num(nan=0.0)  # what a response holds must not reach the next
    running = bounded.cumsum(dim=0)
    return (running - (running - bounded)[first] + _broken(wide, first)).to(values.dtype)


def _totals(values: Float[Tensor, "tokens"], first: Int[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
    """The sum over each response, at the index of its first token; 0 elsewhere."""
    return torch.zeros_like(values).scatter_add(0, first, values)


def _broken(values: Float[Tensor, "tokens"], first: Int[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
    """NaN for the tokens of a response that holds one, else 0."""
    return _totals(values.where(values.isnan(), 0.0), first)[first]


def _geometric(log_ratio: Float[Tensor, "tokens"], response: Int[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
    first = first_tokens(response)
    total, count = _totals(log_ratio.double(), first), _totals(torch.ones_like(log_ratio), first)
    return (total / count)[first].to(log_ratio.dtype)


def _lowest_prefix(log_ratio: Float[Tensor, "tokens"], response: Int[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
    """One running minimum over all responses: each lies below the one before, and so begins anew."""
    first = first_tokens(response)
    below = log_ratio.double().clamp(-_BEYOND, _BEYOND) - 3.0 * _BEYOND * first
    lowest = log_ratio[below.nan_to_num(nan=0.0).cummin(dim=0).indices.roll(1)]
    return log_ratio + lowest.masked_fill(begins(response), 0.0) + _broken(log_ratio, first)


def importance_weight(log_ratio: Float[Tensor, "tokens"], *, cap: float | None) -> Float[Tensor, "tokens"]:
    """min(exp(log_ratio), cap), without gradient: truncated importance sampling (TIS).

    Args:
        log_ratio: log of the ratio of two policies, per token.
        cap: truncation from above; None leaves the ratio as it is.
    """
    weight = log_ratio.detach().exp()
    return weight if cap is None else weight.clamp(max=cap)


def masked_weight(log_ratio: Float[Tensor, "tokens"], *, low: float, high: float) -> Float[Tensor, "tokens"]:
    """w = exp(log_ratio) where low ≤ w ≤ high, else 0; without gradient.

    With low = 0 this is masked importance sampling (MIS); with low > 0 the band of IcePop, arXiv 2510.18855, whose
    limits for π_old/μ_old are 0.5 and 5.
    """
    weight = log_ratio.detach().exp()
    return weight.where(_within(weight, low, high), 0.0)


def _within(weight: Float[Tensor, "tokens"], low: float, high: float) -> Bool[Tensor, "tokens"]:
    return ~((weight < low) | (weight > high))  # NaN stays in: it must be seen
