"""In which precision vLLM can hold keys and values here, known before vLLM starts."""

import torch
from transformers import PreTrainedConfig

from steadyrl.engine.base import EngineError

FP8_HEADS = 32
"""On a CPU the head size of an FP8 cache is a multiple of this."""


def missing_instructions() -> str | None:
    """Name the instruction sets of which vLLM's FP8 cache needs one on a CPU; None where this CPU has one.

    The one place that asks. vLLM asks torch by the same two functions when it builds its attention.
    """
    has_one = torch.cpu._is_avx512_supported() or torch.cpu._is_amx_tile_supported()
    return None if has_one else "AVX-512 or AMX"


def no_fp8_cache(config: PreTrainedConfig | None, *, on_cpu: bool) -> str | None:
    """Say why vLLM cannot hold keys and values in FP8; None where nothing is known against it.

    Args:
        config: the model's; None: ask about the machine alone.
        on_cpu: vLLM computes on a CPU.
    """
    if not on_cpu:
        return None
    if (missing := missing_instructions()) is not None:
        return f"vLLM's FP8 cache needs a CPU with {missing}, and this one has neither"
    if config is None:
        return None
    text = config.get_text_config()
    if getattr(text, "kv_lora_rank", None):
        return "vLLM has no FP8 cache for multi-head latent attention on a CPU"
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if size % FP8_HEADS:
        return f"vLLM's FP8 cache on a CPU needs a head size that is a multiple of {FP8_HEADS}, not {size}"
    return None


def resolve_kv_precision(asked: str, config: PreTrainedConfig | None, *, on_cpu: bool) -> str:
    """Return `native` or `fp8`: what `auto` takes for this model on this machine, or what was asked for.

    Raises:
        EngineError: The recipe asks for FP8, and vLLM cannot do it here.
    """
    reason = None if asked == "native" else no_fp8_cache(config, on_cpu=on_cpu)
    if asked == "fp8" and reason is not None:
        raise EngineError(f'engine.kv_precision = "fp8": {reason}. Use "auto" or "native"')
    return "native" if asked == "native" or reason is not None else "fp8"
