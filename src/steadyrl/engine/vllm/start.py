"""Starts vLLM around a config; the weights come later, by an update."""

import copy
import os
import tempfile
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from steadyrl.engine.base import EngineError
from steadyrl.engine.vllm.refusals import MEMORY_HINT, REFUSALS, exceptions_logged, last_cause

LOGPROBS = "processed_logprobs"
"""vLLM's name for the log-probabilities after temperature, top-k and top-p."""


def start(model: PreTrainedModel, options: Mapping[str, Any], *, on_cpu: bool) -> Any:
    """Return vLLM with a model of this config and random weights.

    Raises:
        EngineError: vLLM refuses the model or the options, or has no memory for them.
    """
    saved = copy.deepcopy(model.config)
    saved.architectures = [type(model).__name__]  # only a saved model's config names it
    # one process with the trainer, or, where GPU memory is handed over, two: handles of it are Python objects
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if on_cpu else "1"
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "0" if on_cpu else "1"
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    logged: list[str] = []
    try:
        with tempfile.TemporaryDirectory(prefix="steadyrl-") as folder, exceptions_logged(logged):
            saved.save_pretrained(folder)
            llm = _llm(folder, options, on_cpu=on_cpu)
    except REFUSALS as error:
        cause = last_cause(error, logged)
        raise EngineError(f"vLLM cannot start: {cause}.{MEMORY_HINT if 'memory' in cause.lower() else ''}") from error
    finally:  # vLLM's worker takes torch's function away, and the trainer's number of threads with it
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
    if not on_cpu:
        llm.init_weight_transfer_engine({"init_info": {"packed": False}})
    return llm


def _llm(folder: str, options: Mapping[str, Any], *, on_cpu: bool) -> Any:
    from vllm import LLM  # pyright: ignore[reportMissingImports]
    from vllm.config import WeightTransferConfig  # pyright: ignore[reportMissingImports]

    of_a_gpu = (
        {} if on_cpu else {"weight_transfer_config": WeightTransferConfig(backend="ipc"), "enable_sleep_mode": True}
    )
    return LLM(
        folder,
        load_format="dummy",
        skip_tokenizer_init=True,  # token ids in, token ids out
        generation_config="vllm",
        logprobs_mode=LOGPROBS,
        disable_log_stats=True,
        use_tqdm_on_load=False,
        **of_a_gpu,
        **options,
    )
