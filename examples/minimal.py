"""MiniRL with Routing Replay, from the pieces: one file, read from top to bottom. Two minutes on a laptop.

    python examples/minimal.py

A tiny mixture of experts with random weights is asked for eight tokens, and its reward is the share of sevens. The
engine that samples rounds to FP8, so it differs from the trainer: the ratios, the clip and the replayed routes are at
work from the first step. `steadyrl.train` does the same with a recipe, and adds evaluation, checkpoints and a report.
"""

import sys
from statistics import fmean

import torch

from steadyrl.algo import MiniRL, group_advantage, ledger, mismatch
from steadyrl.engine.base import generate
from steadyrl.engine.local import LocalEngine
from steadyrl.model.loading import build_tiny
from steadyrl.training.schedule import Schedule
from steadyrl.training.trainer import LocalTrainer, Trained
from steadyrl.types import Completion, Sampling, Trajectory

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 30
PROMPTS, RESPONSES, MINIBATCHES = 8, 8, 2
SEVEN = "7"

# ---- the policy: π for the trainer, μ for the engine, the same weights

policy = build_tiny(
    family="qwen3_moe",
    alphabet="0123456789",
    config={
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "intermediate_size": 32,
        "initializer_range": 0.05,
        "max_position_embeddings": 64,
    },
    seed=0,
    dtype=torch.float32,
)
engine = LocalEngine(policy.model, end_tokens=set(), precision="fp8")
sampling = Sampling(temperature=1.0, max_new_tokens=8)

# ---- the trainer: eq. 7 of the paper, clipped and capped, with the rollout's experts replayed

trainer = LocalTrainer(
    policy=policy,
    optimizer=torch.optim.AdamW(policy.model.parameters(), lr=0.0),
    objective=MiniRL(),
    schedule=Schedule(peak=5e-3, total=STEPS * MINIBATCHES),
    replay="R3",
    minibatches=MINIBATCHES,
)

# ---- prompts and rewards: here your task would be

tokens = {digit: int(policy.tokenizer.convert_tokens_to_ids(digit)) for digit in "0123456789"}
prompts = [(tokens[str(n)], tokens[str((n + 3) % 10)]) for n in range(PROMPTS)]


def reward(completion: Completion) -> float:
    """Share of sevens in a response, in 0 … 1."""
    return completion.token_ids.count(tokens[SEVEN]) / len(completion.token_ids)


# ---- one global step


def rollouts(step: int) -> tuple[list[list[Trajectory]], float]:
    """Sample a group for each prompt, reward it, and give each response its advantage; and the mean reward."""
    answered = generate(engine, prompts, responses=RESPONSES, sampling=sampling, seed=step)
    rewards = torch.tensor([[reward(completion) for completion in group] for group in answered])
    advantages = group_advantage(rewards, normalise=trainer.objective.normalised).tolist()
    groups = [
        [
            Trajectory.single(
                prompt, completion, advantage=advantage, group_tokens=sum(len(c.token_ids) for c in group)
            )
            for completion, advantage in zip(group, row, strict=True)
        ]
        for prompt, group, row in zip(prompts, answered, advantages, strict=True)
    ]
    return groups, float(rewards.mean())


def k3(trained: Trained) -> float:
    """D_KL[μ‖π_old] of a step, by k3: how far the engine that samples differs from the trainer."""
    apart = torch.cat([mismatch(old.old_logprobs, old.micro.rollout_logprobs) for old in trained.old])
    return float(ledger.k3(apart).mean())


def main() -> None:
    """Train, and print a line for each step."""
    first: list[float] = []
    last: list[float] = []
    for step in range(1, STEPS + 1):
        groups, earned = rollouts(step)
        trained = trainer.step(groups)  # the θ_old pass, then one update for each mini-batch
        engine.update_weights(trainer.weights(), version=trainer.version)
        (first if step <= 3 else last).append(earned)
        shown = "skipped: log-probs are not finite" if trained is None else f"mismatch {k3(trained):.1e}"
        print(f"step {step:3}  reward {earned:.3f}  {shown}  policy version {trainer.version}")
    print(f"reward {fmean(first):.3f} at first, {fmean((last or first)[-3:]):.3f} at last")


if __name__ == "__main__":
    main()
