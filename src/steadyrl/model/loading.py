"""Models and tokenizers: from a folder, from the hub, or built small."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from steadyrl.model.attention import attend_by_block, attends_by_block
from steadyrl.model.logprobs import Head
from steadyrl.model.tiny import character_tokenizer, tiny_config
from steadyrl.model.trainable import ModelError, left_out, refuse_adapter, refuse_frozen, refuse_quantised

UNBUILDABLE = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)
"""What transformers and torch raise of a config that makes no model."""

UNLOADABLE = (OSError, RuntimeError, ValueError, SafetensorError)
"""What they raise of a folder that holds no model, or of a damaged one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """A model with what belongs to it."""

    model: PreTrainedModel
    """A causal language model of transformers."""
    tokenizer: PreTrainedTokenizerBase
    """Its tokenizer."""
    warnings: tuple[str, ...] = ()
    """What its user should know, such as a vision tower that was left out."""

    @property
    def one_block(self) -> bool:
        """A micro-batch must be a single block of sequences: see `model.attention`."""
        return not attends_by_block(self.model)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.model.device


def build_tiny(*, family: str, alphabet: str, config: Mapping[str, Any], seed: int, dtype: torch.dtype) -> Policy:
    """A small model with weights drawn from `seed`.

    Raises:
        ModelError: the family, a field of its config or the alphabet is wrong.
    """
    try:
        tokenizer = character_tokenizer(alphabet)
        full = tiny_config(family, config, len(tokenizer))
    except ValueError as error:
        raise ModelError(str(error)) from error
    torch.manual_seed(seed)
    try:
        return _policy(AutoModelForCausalLM.from_config(full, dtype=dtype), tokenizer)
    except ModelError:
        raise
    except UNBUILDABLE as error:
        raise _unbuildable(full, error) from error


def load_pretrained(
    path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False, dtype: torch.dtype
) -> Policy:
    """A saved model with its tokenizer, or one of the hub.

    Raises:
        ModelError: the model is missing or damaged, or needs its own code and `trust_remote_code` is off. Or it cannot
            be trained in full, because of an adapter, or quantised or frozen weights.
    """
    model = load_model(path, revision=revision, trust_remote_code=trust_remote_code, dtype=dtype)
    tokenizer = load_tokenizer(path, revision=revision, trust_remote_code=trust_remote_code)
    config = config_of(str(path), revision=revision, trust_remote_code=trust_remote_code)
    warning = left_out(config, model)
    return _policy(model, tokenizer, warnings=() if warning is None else (warning,))


def load_tokenizer(path: str | Path, *, revision: str | None, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer alone.

    Raises:
        ModelError: the model is missing or damaged, or needs its own code and `trust_remote_code` is off.
    """
    _check_folder(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except UNLOADABLE as error:
        raise _unloadable(path, error) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes where there are no files
        raise ModelError(f"model.path = {str(path)!r} holds no tokenizer; save it beside the weights")
    return tokenizer


def load_model(
    path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False, dtype: torch.dtype
) -> PreTrainedModel:
    """The weights alone, every one of them.

    Raises:
        ModelError: as `load_pretrained`.
    """
    where: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    config_of(str(path), **where)  # adapters and quantised weights are refused by their configs
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, use_safetensors=True, output_loading_info=True, **where
        )
    except UNLOADABLE as error:
        raise _unloadable(path, error) from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):  # transformers would draw them at random, and say so in passing
        kind = type(model).__name__
        raise ModelError(
            f"model.path = {str(path)!r} is missing {len(missing)} weights of {kind} (first: {missing[0]!r})"
        )
    model.generation_config = _savable(model.generation_config)
    return model


def config_of(path: str, *, revision: str | None, trust_remote_code: bool) -> PreTrainedConfig:
    """The config alone, which is all that a dry run needs.

    Raises:
        ModelError: as `load_pretrained`.
    """
    _check_folder(path)
    try:
        refuse_adapter(path, revision=revision)
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except ModelError:
        raise
    except UNLOADABLE as error:
        raise _unloadable(path, error) from error
    refuse_quantised(path, config)
    return config


def generation_ends(config: PreTrainedConfig, path: str | None, *, revision: str | None) -> int | list[int] | None:
    """The ids that the generation config names as ends; where a model has none, those of its config.

    Raises:
        ModelError: it is damaged.
    """
    if path is None:
        return config.eos_token_id
    try:
        return GenerationConfig.from_pretrained(path, revision=revision or "main").eos_token_id
    except OSError:  # there is no such file
        return GenerationConfig.from_model_config(config).eos_token_id
    except ValueError as error:
        raise _unloadable(path, error) from error


def _unloadable(path: str | Path, error: Exception) -> ModelError:
    return ModelError(f"model.path = {str(path)!r} cannot be loaded: {error}")


def _check_folder(path: str | Path) -> None:
    """A path that can only be a folder must be one; else transformers would take it for a name on the hub."""
    local = str(path).startswith((".", "~")) or Path(path).is_absolute()
    if local and not Path(path).is_dir():
        raise ModelError(f"model.path = {str(path)!r} cannot be loaded: there is no such folder")


def skeleton(config: PreTrainedConfig, *, trust_remote_code: bool) -> PreTrainedModel:
    """The model without its weights: shapes alone.

    Raises:
        ModelError: the config does not make a model, or one with frozen weights.
    """
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except UNBUILDABLE as error:
        raise _unbuildable(config, error) from error
    refuse_frozen(model)
    return model


def _unbuildable(config: PreTrainedConfig, error: Exception) -> ModelError:
    return ModelError(f"model.config does not make a {config.model_type}: {type(error).__name__}: {error}")


def _savable(generation: GenerationConfig) -> GenerationConfig:
    """The defaults for generation or, where transformers would refuse to save them, their token ids alone."""
    try:
        generation.validate(strict=True)
    except ValueError:
        ids = ("bos_token_id", "eos_token_id", "pad_token_id")
        return GenerationConfig(**{name: getattr(generation, name) for name in ids})
    return generation


def head_of(model: PreTrainedModel) -> Head:
    """The output projection, with the scale or soft cap that some families put behind it."""
    embedding = model.get_output_embeddings()
    if embedding is None:
        raise ModelError(f"{type(model).__name__} has no output embedding: it is not a causal language model")
    config = model.config.get_text_config()
    divisor = getattr(config, "logits_scaling", None) or 1.0
    return Head(
        weight=embedding.weight,
        bias=getattr(embedding, "bias", None),
        scale=(getattr(config, "logit_scale", None) or 1.0) / divisor,
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The model below its output projection; the prefix of some families names the causal model itself."""
    below = model.base_model
    return below if below is not model else cast(nn.Module, model.model)


def recompute_activations(model: PreTrainedModel) -> None:
    """Keep few activations, and compute the others again in the backward.

    Of a model in evaluation mode only the layers that do so are put into training mode, until their forward begins:
    dropout and jitter stay off.
    """
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True
            module.register_forward_pre_hook(_rest)
            module.register_forward_hook(_resume, always_call=True)


def _rest(layer: nn.Module, args: object) -> None:
    layer.trains, layer.training = layer.training, False  # pyright: ignore[reportArgumentType]


def _resume(layer: nn.Module, args: object, output: object) -> None:
    layer.training = layer.trains  # pyright: ignore[reportAttributeAccessIssue]


def _policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, warnings: tuple[str, ...] = ()) -> Policy:
    refuse_frozen(model)
    _check_head(model)
    attend_by_block(model)
    return Policy(model=model, tokenizer=tokenizer, warnings=warnings)


@torch.no_grad()
def _check_head(model: PreTrainedModel) -> None:
    """Hold `head_of` against the model's own logits on two tokens: a family with another head is rejected."""
    model.eval()
    ids = torch.tensor([[1, 0]], device=model.device)
    own = model(input_ids=ids, use_cache=False).logits.float()
    if not own.isfinite().all():
        raise ModelError(f"the logits of {type(model).__name__} are not finite: its weights are broken, or overflow")
    ours = head_of(model).logits(decoder_of(model)(input_ids=ids, use_cache=False).last_hidden_state)
    if not torch.allclose(own, ours, rtol=1e-2, atol=1e-2):
        raise ModelError(
            f"{type(model).__name__} changes its logits after the output embedding in a way that is not known here "
            f"(largest difference {(own - ours).abs().max():.3g}); its log-probabilities would be wrong"
        )
