"""A language of three tokens and at most three of them to a response, small enough to enumerate: expectations are sums.

Token 0 ends a response. A policy is a table of logits, one row per prefix that has not ended.
"""

import torch
from torch import Tensor

from steadyrl.algo import Tokens

PREFIXES = [(), (1,), (2,), (1, 1), (1, 2), (2, 1), (2, 2)]
RESPONSES = [
    (0,),
    *((a, 0) for a in (1, 2)),
    *((a, b, c) for a in (1, 2) for b in (1, 2) for c in (0, 1, 2)),
]
LENGTHS = [len(y) for y in RESPONSES]
RESPONSE = torch.arange(len(RESPONSES)).repeat_interleave(torch.tensor(LENGTHS))
ROWS = torch.tensor([PREFIXES.index(y[:t]) for y in RESPONSES for t in range(len(y))])
CHOSEN = torch.tensor([token for y in RESPONSES for token in y])
REWARDS = torch.linspace(-1.0, 2.0, len(RESPONSES), dtype=torch.float64).sin() * 2.0


def policy(seed: int) -> Tensor:
    """Logits of a policy."""
    return torch.randn(len(PREFIXES), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def logprobs(logits: Tensor) -> Tensor:
    """log π of every token of every response, flat."""
    return logits.log_softmax(dim=1)[ROWS, CHOSEN]


def by_response(flat: Tensor) -> Tensor:
    """Sums over the tokens of each response."""
    return torch.zeros(len(RESPONSES), dtype=flat.dtype).index_add(0, RESPONSE, flat)


def expected_reward(logits: Tensor) -> Tensor:
    """J_seq, eq. 1, exactly."""
    return (by_response(logprobs(logits)).exp() * REWARDS).sum()


def all_tokens(old: Tensor, rollout: Tensor, rewards: Tensor = REWARDS) -> Tokens:
    """Every response once, with R(y) μ(y) as advantage: the sum over them is the expectation under μ."""
    per_response = rewards * by_response(logprobs(rollout)).exp()
    lengths = torch.tensor(LENGTHS, dtype=torch.float64)
    return Tokens(
        rollout_logprobs=logprobs(rollout),
        old_logprobs=logprobs(old),
        advantages=per_response[RESPONSE],
        response_tokens=lengths[RESPONSE],
        group_tokens=torch.full((len(RESPONSE),), float(sum(LENGTHS)), dtype=torch.float64),
        response=RESPONSE,
    )


def gradient(objective, logits: Tensor, tokens: Tokens) -> Tensor:
    """∇J by the table of logits, with the mini-batch counted as one response and one group."""
    leaf = logits.clone().requires_grad_()
    objective(logprobs(leaf), tokens, responses=1, groups=1).surrogate.sum().backward()
    assert leaf.grad is not None
    return leaf.grad
