"""How the trainer's weights reach vLLM.

On a CPU vLLM runs in this process and copies from the trainer's tensors. On a GPU it runs in another process and reads
this process's GPU memory by its weight-transfer API; **this path has not been run**.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from steadyrl.engine.precision import round_e4m3
from steadyrl.engine.vllm.release import Release


@torch.no_grad()
def checkpoint(model: PreTrainedModel, weights: Mapping[str, Tensor], rounded: Mapping[str, int]) -> dict[str, Tensor]:
    """The trainer's weights and the model's buffers, by the names that a checkpoint has on disk.

    Those names can join or split parameters, so all of them are needed at once.

    Args:
        model: the trained model.
        weights: its parameters, by name.
        rounded: which of them are rounded to e4m3, with the dimension that shares a scale.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}  # tied ones: the first name
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        own = names.get(id(tensor), name)
        if own == name:  # a buffer, or a parameter by its first name: tied ones are stored once
            new = weights.get(name, tensor)
            state[name] = round_e4m3(new, dim=rounded[name]) if name in rounded else new
    return {name: tensor.detach() for name, tensor in revert_weight_conversion(model, state).items()}


def send(llm: Any, tensors: Mapping[str, Tensor], release: Release, *, on_cpu: bool) -> None:
    """Have vLLM load a checkpoint.

    Raises:
        ValueError, RuntimeError: vLLM did not take it.
    """
    if on_cpu:
        llm.collective_rpc(_load, args=(tensors, release))
    else:
        _send_handles(llm, tensors)


def _send_handles(llm: Any, tensors: Mapping[str, Tensor]) -> None:
    """Pass GPU memory by its handles; the tensors must live until vLLM has read them. Not run here."""
    from torch.multiprocessing.reductions import reduce_tensor

    held = {name: tensor.contiguous() for name, tensor in tensors.items()}
    gpu = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    torch.cuda.synchronize()
    llm.start_weight_update()
    llm.update_weights(
        {
            "update_info": {
                "names": list(held),
                "dtype_names": [str(tensor.dtype).removeprefix("torch.") for tensor in held.values()],
                "shapes": [list(tensor.shape) for tensor in held.values()],
                "ipc_handles": [{gpu: reduce_tensor(tensor)[1]} for tensor in held.values()],
            }
        }
    )
    llm.finish_weight_update()
    torch.cuda.ipc_collect()


@torch.no_grad()
def _load(worker: Any, tensors: Mapping[str, Tensor], release: Release) -> None:
    """Load a checkpoint on a CPU as vLLM does at its start: weights by name, then the layout of the kernels.

    vLLM's `reload_weights` does this layer by layer and loads every tensor twice, which keeps captured graphs valid.
    A CPU has no such graphs.

    Raises:
        ValueError: the checkpoint leaves weights of vLLM's model unfilled, or not numbers.
    """
    from vllm.model_executor.model_loader.utils import process_weights_after_loading  # pyright: ignore[reportMissingImports]

    model = worker.get_model()
    _unpack(model, release)
    for weight in model.parameters():
        weight.fill_(math.nan)
    model.load_weights(tensors.items())
    if bad := [name for name, weight in model.named_parameters() if weight.isnan().any()]:
        raise ValueError(f"vLLM's {', '.join(bad)} are not filled by the checkpoint, or not numbers")
    process_weights_after_loading(model, worker.model_runner.model_config, torch.device("cpu"))


def _unpack(model: Any, release: Release) -> None:
    """Give linear layers and experts, whose kernels packed or removed the parameters, empty ones as at vLLM's start.

    Embeddings keep theirs: kernels read a packed copy, and the output projection may share them.
    """
    from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase  # pyright: ignore[reportMissingImports]
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding  # pyright: ignore[reportMissingImports]
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info  # pyright: ignore[reportMissingImports]
    from vllm.model_executor.model_loader.reload.meta import materialize_meta_tensor  # pyright: ignore[reportMissingImports]
    from vllm.model_executor.model_loader.reload.sanitize import restore_layer_refs  # pyright: ignore[reportMissingImports]

    for module in model.modules():
        method: Any = getattr(module, "quant_method", None)
        if not isinstance(method, QuantizeMethodBase) or isinstance(module, VocabParallelEmbedding):
            continue
        for name, shape in get_layerwise_info(module).restore_metadata[0].items():
            setattr(module, name, restore_layer_refs(materialize_meta_tensor(shape), module))
        if release.keeps_expert_kernels and hasattr(method, "moe_kernel"):
            method.moe_kernel = None  # pyright: ignore[reportAttributeAccessIssue]
