"""What a saved model must be so that all of it can be trained: no adapter, not quantised, nothing frozen."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from steadyrl.errors import UserError

QUANTISED = ("quantization_config", "compression_config")
"""Fields of a config that say how the weights were quantised."""


class ModelError(UserError):
    """A model that cannot be loaded or trained. The message names it and the way out."""


def refuse_adapter(path: str | Path, *, revision: str | None) -> None:
    """Refuse a folder, or a name on the hub, that holds an adapter; transformers would load and freeze its base.

    Raises:
        ModelError: it has an adapter_config.json.
    """
    if find_adapter_config_file(str(path), revision=revision) is not None:
        raise ModelError(
            f"model.path = {str(path)!r} holds an adapter (adapter_config.json), and only full weights can be trained. "
            "Merge it into its base model first (peft's merge_and_unload), save that, and give its folder"
        )


def refuse_quantised(path: str | Path, config: PreTrainedConfig) -> None:
    """Refuse a model whose config says that its weights are quantised, in whole or in its text part.

    Raises:
        ModelError: they are.
    """
    parts = (config, *(getattr(config, name, None) for name in config.sub_configs))
    for part in parts:
        for field in QUANTISED:
            given: Any = getattr(part, field, None)
            if given:
                method = (
                    given.get("quant_method", "no method named") if isinstance(given, dict) else type(given).__name__
                )
                raise ModelError(
                    f"model.path = {str(path)!r} is quantised ({field}: {method}), and quantised weights cannot be "
                    "trained. Give the unquantised model"
                )


def refuse_frozen(model: PreTrainedModel) -> None:
    """Reject a model with a weight that takes no gradient.

    Raises:
        ModelError: at least one does not.
    """
    frozen = [name for name, weight in model.named_parameters() if not weight.requires_grad]
    if frozen:
        raise ModelError(
            f"{type(model).__name__} has {len(frozen)} frozen weights (first: {frozen[0]!r}), and all weights are "
            "trained here. Use a model without frozen weights"
        )


def left_out(config: PreTrainedConfig, model: PreTrainedModel) -> str | None:
    """Say which parts of a saved model its text model leaves out, such as a vision tower; None where there are none.

    Args:
        config: the folder's.
        model: the causal language model that is made of it.
    """
    own = model.config
    if type(own) is type(config):
        return None
    towers = [name for name in config.sub_configs if not isinstance(getattr(config, name, None), type(own))]
    towers = sorted(name.removesuffix("_config") for name in towers if getattr(config, name, None) is not None)
    if not towers:
        return None
    return (
        f"the model is a {config.model_type}, and only its text model {type(model).__name__} is loaded: the weights of "
        f"{', '.join(towers)} are left out, of training and of the checkpoints"
    )
