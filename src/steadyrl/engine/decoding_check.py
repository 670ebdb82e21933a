"""Is decoding right for this model? A few tokens are decoded together and held against a plain forward.

The embedded engine decodes with a cache, prompts of different lengths side by side, and drops sequences that have
ended. A family whose layers carry a state that does not follow would sample from another policy than the trainer
scores, and nothing would say so. The check runs once, when an engine is built, on the weights before any rounding.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from steadyrl.engine.base import EngineError
from steadyrl.engine.returned import NotFinite
from steadyrl.errors import UserError
from steadyrl.model.decoding import rope_length
from steadyrl.routing import is_moe, record
from steadyrl.types import Completion, Sampling

NEW_TOKENS, LONGEST, RESPONSES = 6, 9, 2
"""Length of a response, of the longer prompt, and responses to each of the two prompts."""
MOST_APART = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Nats, on average. What is right stays below 1e-5 in float32."""
MOST_APART_ROUNDED = 0.1
"""The same for dtypes of fewer bits; in bfloat16 what is right stays below 0.02."""
MOST_OTHER_ROUTES = 0.2
"""Share of (position, layer) whose experts may differ, by near ties; routes of another position differ in most."""
UNDECODABLE = (AssertionError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What a model's code raises of a cache that it cannot use."""

Decode = Callable[[Sequence[Sequence[int]], Tensor, Sampling, set[int]], list[list[Completion]]]
"""Decodes prompts, given uniform numbers [prompts, responses, tokens], a sampling, and the tokens that end."""


def check_decoding(model: PreTrainedModel, decode: Decode) -> None:
    """Decode two prompts of different lengths, twice, and compare with forwards of each sequence alone.

    In the second pass one token of the first ends a response, so that sequences leave the batch.

    Args:
        model: what `decode` computes with; its weights are not rounded.
        decode: the engine's decoding.

    Raises:
        NotFinite: the model's own forward is not finite.
        EngineError: the model cannot be decoded, or its log-probabilities or experts are others than in a forward.
    """
    name = type(model).__name__
    try:
        _check(model, decode, name)
    except (UserError, torch.OutOfMemoryError):
        raise
    except UNDECODABLE as error:
        said = str(error).rstrip(". ").partition("\n")[0]
        raise EngineError(
            f"the embedded engine cannot decode {name}: {type(error).__name__}: {said}. "
            'Use engine.kind = "vllm", or another model'
        ) from error


def _check(model: PreTrainedModel, decode: Decode, name: str) -> None:
    prompts, numbers = _questions(model)
    sampling = Sampling(temperature=1.0, max_new_tokens=numbers.shape[-1])
    answers = decode(prompts, numbers, sampling, set())
    ending = answers[0][0].token_ids[len(answers[0][0].token_ids) // 3]
    shorter = decode(prompts, numbers, sampling, {ending})
    apart, others = [], []
    for prompt, whole, cut in _pairs(prompts, answers, shorter):
        logprobs, routes = _forward(model, (*prompt, *whole.token_ids), len(prompt))
        if not bool(logprobs.isfinite().all()):
            raise NotFinite(f"{name} computes log-probabilities that are not finite: its weights are broken")
        kept = len(cut.token_ids)
        if cut.token_ids != whole.token_ids[:kept]:
            raise EngineError(f"the embedded engine decodes {name} differently after other sequences have ended")
        apart += [(logprobs - whole.logprobs).abs(), (logprobs[:kept] - cut.logprobs).abs()]
        if routes is not None and whole.routes is not None:
            others.append((_ordered(routes) != _ordered(whole.routes)).any(dim=-1).flatten())
    mean, limit = torch.cat(apart).mean().item(), MOST_APART.get(model.dtype, MOST_APART_ROUNDED)
    if not mean <= limit:
        raise EngineError(
            f"the embedded engine decodes {name} to log-probabilities that differ from its forward by {mean:.3g} nats "
            f'on average; precision explains at most {limit:g}. Use engine.kind = "vllm", or another model'
        )
    share = torch.cat(others).float().mean().item() if others else 0.0
    if share > MOST_OTHER_ROUTES:
        raise EngineError(
            f"the embedded engine decodes {name} with experts that its forward does not choose, at {share:.0%} of the "
            'positions and layers. Use engine.kind = "vllm", or another model'
        )


def _questions(model: PreTrainedModel) -> tuple[list[tuple[int, ...]], Tensor]:
    """Two prompts, the second longer, and the numbers that their responses are sampled with; all within the context."""
    config = model.config.get_text_config()
    known = (rope_length(config), getattr(config, "max_position_embeddings", None))
    context = min((length for length in known if length is not None), default=LONGEST + NEW_TOKENS)
    new = max(1, min(NEW_TOKENS, context // 2))
    longest = max(1, min(LONGEST, context - new))
    generator = torch.Generator().manual_seed(0)
    lengths = (max(1, longest // 3), longest)
    prompts = [tuple(torch.randint(config.vocab_size, (n,), generator=generator).tolist()) for n in lengths]
    return prompts, torch.rand(len(lengths), RESPONSES, new, generator=generator)


def _pairs(
    prompts: Sequence[Sequence[int]], first: list[list[Completion]], second: list[list[Completion]]
) -> Iterator[tuple[Sequence[int], Completion, Completion]]:
    for prompt, group, again in zip(prompts, first, second, strict=True):
        for one, other in zip(group, again, strict=True):
            yield prompt, one, other


@torch.no_grad()
def _forward(model: PreTrainedModel, sequence: Sequence[int], prompt: int) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of the response, and the experts of every fed position, from one forward without a cache."""
    ids = torch.tensor([sequence], device=model.device)
    with record(model) as recorder:
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0, prompt - 1 :]
    logprobs = logits.float().log_softmax(dim=-1).gather(1, ids[0, prompt:, None])[:, 0]
    return logprobs.cpu(), recorder.routes().cpu() if is_moe(model) else None


def _ordered(routes: Tensor) -> Tensor:
    return routes.int().sort(dim=-1).values
