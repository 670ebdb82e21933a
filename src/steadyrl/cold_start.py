"""Supervised training on worked solutions, so that the policy has something to reinforce."""

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from steadyrl.build import build_optimizer, stage_task
from steadyrl.errors import UserError
from steadyrl.evaluation import Evaluator
from steadyrl.model.forward import feed
from steadyrl.model.loading import Policy, decoder_of, head_of
from steadyrl.model.logprobs import token_logprobs
from steadyrl.model.packing import pack_sequences
from steadyrl.model.text import encode_response
from steadyrl.order import problem_indices
from steadyrl.recipe import Recipe
from steadyrl.rollout.rollouter import Rollouter
from steadyrl.routing import moe_blocks
from steadyrl.run.directory import Run
from steadyrl.tasks.base import Example
from steadyrl.types import TokenBatch

StopAsked = Callable[[], bool]
"""Whether somebody wants the run to stop."""


class ColdStartError(UserError):
    """A cold start that cannot go on. The message names the step and the way out."""


def cold_start(
    recipe: Recipe, policy: Policy, rollouter: Rollouter, evaluator: Evaluator, run: Run, *, stop_asked: StopAsked
) -> None:
    """Train a model on worked solutions of its task, and give the result to the engine.

    In the last stage the sampled accuracy is measured every `check_every` steps, and training ends once it reaches
    `stop_at`. There is no checkpoint to stop at: a stop that is asked for interrupts.

    Raises:
        ColdStartError: loss or gradient was not finite.
    """
    options, optimizer = recipe.cold_start, build_optimizer(policy.model, recipe.optimizer, lr=0.0)
    assert options is not None
    step = 0
    with run.bar("cold start", sum(stage.steps for stage in options.stages)) as bar:
        for number, stage in enumerate(options.stages, start=1):
            task = stage_task(recipe, stage, rollouter.task)
            _set_learning_rate(optimizer, stage.learning_rate)
            for _ in range(stage.steps):
                step += 1
                batch = problem_indices(recipe.seed, step, options.batch, task.size("train"))
                batches = _worked(recipe, policy, rollouter, [task.example("train", index) for index in batch])
                loss = _imitate(policy, batches, optimizer, options.aux_loss, recipe.optimizer.max_grad_norm)
                if loss is None:
                    raise ColdStartError(
                        f"cold start, step {step}: loss or gradient was not finite. Lower learning_rate of this stage"
                    )
                measuring = number == len(options.stages) and step % options.check_every == 0
                if measuring:
                    _load(rollouter, policy)
                accuracy = evaluator.accuracy() if measuring else None
                run.cold_start.log(step, {"loss": loss} if accuracy is None else {"loss": loss, "accuracy": accuracy})
                bar.cold_start(step, loss, accuracy)
                if stop_asked():
                    raise KeyboardInterrupt
                if accuracy is not None and accuracy >= options.stop_at:
                    break
    _load(rollouter, policy)


def _load(rollouter: Rollouter, policy: Policy) -> None:
    rollouter.engine.update_weights(policy.model.named_parameters(), version=0)


def _set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value


def _imitate(
    policy: Policy,
    batches: Sequence[TokenBatch],
    optimizer: torch.optim.Optimizer,
    aux_loss: float,
    max_grad_norm: float | None,
) -> float | None:
    """One gradient step on −log π of worked solutions, averaged over their tokens; None if it is not finite."""
    tokens = sum(len(batch.targets) for batch in batches)
    optimizer.zero_grad()
    total = 0.0
    for batch in batches:
        negative, balance = _losses(policy, batch, balanced=aux_loss > 0.0)
        share = len(batch.targets) / tokens
        (negative.sum() / tokens + aux_loss * share * balance).backward()
        total += negative.detach().sum().item()
    norm = nn.utils.clip_grad_norm_(policy.model.parameters(), math.inf if max_grad_norm is None else max_grad_norm)
    if not math.isfinite(total) or not norm.isfinite():
        return None
    optimizer.step()
    return total / tokens


def _worked(recipe: Recipe, policy: Policy, rollouter: Rollouter, examples: Sequence[Example]) -> list[TokenBatch]:
    prompts = [prompt.token_ids for prompt in rollouter.prompts(examples)]
    answers = [encode_response(policy.tokenizer, example.solution) for example in examples]
    packed = pack_sequences(
        [(*prompt, *answer) for prompt, answer in zip(prompts, answers, strict=True)],
        [len(prompt) for prompt in prompts],
        micro_tokens=recipe.update.micro_tokens,
        one_block=policy.one_block,
    )
    return [batch.to(policy.device) for batch in packed]


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
