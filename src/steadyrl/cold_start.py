"""Supervised training on worked solutions, so that the policy has something to reinforce."""

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from steadyrl.errors import UserError
from steadyrl.evaluate import evaluate, held_out
from steadyrl.metrics import MetricsLog
from steadyrl.model.forward import feed
from steadyrl.model.loading import Policy, decoder_of, head_of
from steadyrl.model.logprobs import token_logprobs
from steadyrl.model.packing import pack_sequences
from steadyrl.model.routing import moe_blocks
from steadyrl.model.text import encode_response
from steadyrl.order import problem_indices
from steadyrl.recipe import ColdStart
from steadyrl.rollout import require_rewards
from steadyrl.session import Session, build_optimizer, stage_task
from steadyrl.tasks.base import Example, Task
from steadyrl.types import TokenBatch


class ColdStartError(UserError):
    """A cold start that cannot go on. The message names the step and the way out."""


def cold_start(
    session: Session,
    options: ColdStart,
    log: MetricsLog,
    *,
    on_step: Callable[[int, float, float | None], None],
) -> None:
    """Train the session's model on its task's worked solutions, and hand the result to the engine.

    In the last stage the sampled accuracy is looked at every `check_every` steps, and training ends once it reaches
    `stop_at`.

    Args:
        on_step: told the step, its loss and, where it was looked at, the accuracy.

    Raises:
        ColdStartError: loss or gradient was not finite.
    """
    optimizer = build_optimizer(session.policy.model, session.recipe.optimizer, lr=0.0)
    step = 0
    for number, stage in enumerate(options.stages, start=1):
        task = stage_task(session.recipe, stage, session.task)
        _set_learning_rate(optimizer, stage.learning_rate)
        for _ in range(stage.steps):
            step += 1
            loss = _imitate(session, task, optimizer, options, step)
            looking = number == len(options.stages) and step % options.check_every == 0
            accuracy = _look(session) if looking else None
            log.log(step, {"loss": loss} if accuracy is None else {"loss": loss, "accuracy": accuracy})
            on_step(step, loss, accuracy)
            if accuracy is not None and accuracy >= options.stop_at:
                break
    session.engine.load_weights(dict(session.policy.model.named_parameters()), policy_version=0)


def _set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value


def _imitate(session: Session, task: Task, optimizer: torch.optim.Optimizer, options: ColdStart, step: int) -> float:
    """One gradient step on −log π of a batch of worked solutions, averaged over their tokens."""
    indices = problem_indices(session.recipe.seed, step, options.batch, task.size("train"))
    batches = _worked(session, [task.example("train", index) for index in indices])
    tokens = sum(len(batch.targets) for batch in batches)
    optimizer.zero_grad()
    total = 0.0
    for batch in batches:
        negative, balance = _losses(session.policy, batch, balanced=options.aux_loss > 0.0)
        share = len(batch.targets) / tokens
        (negative.sum() / tokens + options.aux_loss * share * balance).backward()
        total += negative.detach().sum().item()
    limit = session.recipe.optimizer.max_grad_norm
    norm = nn.utils.clip_grad_norm_(session.policy.model.parameters(), math.inf if limit is None else limit)
    if not math.isfinite(total) or not norm.isfinite():
        raise ColdStartError(
            f"cold start, step {step}: loss or gradient was not finite. Lower learning_rate of this stage"
        )
    optimizer.step()
    return total / tokens


def _worked(session: Session, examples: Sequence[Example]) -> list[TokenBatch]:
    policy = session.policy
    prompts = [prompt.token_ids for prompt in session.prompts(examples)]
    answers = [encode_response(policy.tokenizer, example.solution) for example in examples]
    return pack_sequences(
        [(*prompt, *answer) for prompt, answer in zip(prompts, answers, strict=True)],
        [len(prompt) for prompt in prompts],
        micro_tokens=session.recipe.update.micro_tokens,
        one_block=policy.one_block,
        device=policy.device,
    )


def _losses(policy: Policy, batch: TokenBatch, *, balanced: bool) -> tuple[Tensor, Tensor]:
    """−log π of each solution token, and the load-balancing loss of transformers where it is asked for."""
    extra = {"output_router_logits": True} if balanced else {}
    out = decoder_of(policy.model)(**feed(policy.model, batch), use_cache=False, **extra)
    hidden = out.last_hidden_state.flatten(0, 1).index_select(0, batch.predicting)
    logprobs, _ = token_logprobs(hidden, head_of(policy.model), batch.targets, temperature=1.0)
    if not balanced:
        return -logprobs, logprobs.new_zeros(())
    (_, experts), *_ = moe_blocks(policy.model)
    slots = policy.model.config.get_text_config().num_experts_per_tok
    balance = load_balancing_loss_func(out.router_logits, experts, slots)
    return -logprobs, cast(Tensor, balance)


def _look(session: Session) -> float:
    session.engine.load_weights(dict(session.policy.model.named_parameters()), policy_version=0)
    result, _, rewards = evaluate(session, session.engine, problems=held_out(session), samples=1, greedy=False)
    require_rewards(rewards, limit=session.recipe.verifier.max_failures)
    return result.value
