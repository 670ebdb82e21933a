"""What the objectives and the ledger cost: one million tokens on one core."""

import statistics

import torch

from _measure import seconds, show, sized
from steadyrl import algo
from steadyrl.algo import Tokens, ledger, value_gap

TOKENS = sized(2**20, 2**14)
LENGTH = 1024
ROUNDS = sized(15, 1)
NAMED = ("Reinforce", "MiniRL", "MinPRO", "PrefixIS", "GRPO", "DrGRPO", "DAPO", "CISPO")
NAMED += ("GSPO", "DPPOTV", "DPPOKL", "VESPO", "SAPO", "Composed")


def batch() -> tuple[torch.Tensor, Tokens]:
    """Responses of 1,024 tokens, both factors of a size that clips and caps."""
    rollout = -torch.rand(TOKENS) * 3 - 0.01
    old = rollout + 0.05 * torch.randn(TOKENS)
    theta = (old + 0.2 * torch.randn(TOKENS)).clamp(max=0.0)
    each = torch.arange(TOKENS // LENGTH)
    return theta, Tokens(
        rollout_logprobs=rollout,
        old_logprobs=old,
        advantages=(each % 2 * 2.0 - 1.0).repeat_interleave(LENGTH),
        response_tokens=torch.full((TOKENS,), float(LENGTH)),
        group_tokens=torch.full((TOKENS,), 16.0 * LENGTH),
        response=each.repeat_interleave(LENGTH),
    )


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    logprobs, tokens = batch()
    leaf = logprobs.requires_grad_()

    def train(objective: algo.Objective) -> None:
        terms = objective(leaf, tokens, responses=TOKENS // LENGTH, groups=TOKENS // LENGTH // 16)
        torch.autograd.grad(terms.surrogate.sum(), leaf)

    log_ratio = (logprobs - tokens.rollout_logprobs).detach()
    work = {f"objective {name}": lambda name=name: train(getattr(algo, name)()) for name in NAMED}
    work["objective Composed, second moment"] = lambda: train(algo.Composed(trust="second_moment", threshold=0.04))
    known = ledger.factors(logprobs.detach(), tokens.rollout_logprobs, tokens.old_logprobs).known
    splits = [ledger.by_position(tokens.response), ledger.by_advantage(tokens.advantages)]
    work["ledger of three factors, not split"] = lambda: ledger.table(known, tokens.response)
    work["ledger of three factors, split twice"] = lambda: ledger.table(known, tokens.response, splits)
    work["gap of the values"] = lambda: value_gap(log_ratio, tokens.response)
    rows = []
    for name, call in work.items():
        times = [seconds(call) for _ in range(ROUNDS + 1)][1:]
        rows.append({"what": name, "ms": 1e3 * statistics.median(times), "best ms": 1e3 * min(times)})
    figures = {row["what"]: round(row["ms"], 2) for row in rows}
    show(f"{TOKENS:,} tokens in responses of {LENGTH:,}, value and gradient", rows, {"milliseconds": figures})


if __name__ == "__main__":
    main()
