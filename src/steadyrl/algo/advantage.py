"""Advantages relative to the group of responses to the same prompt."""

from jaxtyping import Float
from torch import Tensor


def group_advantage(
    rewards: Float[Tensor, "prompts responses"], *, normalise: bool
) -> Float[Tensor, "prompts responses"]:
    """Â = R − mean(R) over the group, divided by the group's standard deviation if `normalise`.

    MiniRL (arXiv 2512.01374, §3) does not divide; GRPO and CISPO (its Appendix A) do. The standard deviation is the
    population's; a group of equal rewards gets zeros either way.
    """
    equal = rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)
    centred = (rewards - rewards.mean(dim=1, keepdim=True)).masked_fill(equal, 0.0)  # the mean itself is rounded
    if not normalise:
        return centred
    deviation = centred.square().mean(dim=1, keepdim=True).sqrt()
    return centred / deviation.where(deviation > 0, 1.0)
