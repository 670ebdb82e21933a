"""vLLM as the inference engine. Nothing else in the package imports vLLM, and this module only when one is made.

vLLM computes; what this module adds is the contract of `engine.base`: log-probabilities of the distribution that was
sampled from, routes of every fed position or an error, the same completions for the same seed, and a policy version
that rises only once vLLM holds the new weights and has forgotten what it computed with the old.

On a CPU vLLM runs in this process, so that nothing outlives it. New weights go through a file in memory (/dev/shm). On
a GPU it runs in a process of its own and takes weights by its weight-transfer API, as handles of this process's GPU
memory; **this path has not been run**.
"""

import copy
import importlib.util
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from steadyrl.engine.base import EngineError, check_prompts, check_weights
from steadyrl.engine.kv_cache import no_fp8_cache, resolve_kv_precision
from steadyrl.engine.precision import quantised_weights, round_e4m3
from steadyrl.engine.refusals import MEMORY_HINT, REFUSALS, exceptions_logged, last_cause
from steadyrl.engine.returned import checked_routes
from steadyrl.errors import UserError
from steadyrl.model.decoding import rope_length
from steadyrl.model.routing import moe_blocks, slots_of
from steadyrl.options.bounds import AtOnce, FedTokens, Within
from steadyrl.types import Completion, Sampling


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """What has to be known of one version of vLLM."""

    keeps_expert_kernels: bool
    """On a CPU, an update leaves new experts in the checkpoint's layout, while their kernel reads the packed one. The
    kernels have to be dropped before, so that they are built, and the experts packed, anew."""


SUPPORTED = {"0.30.0": Release(keeps_expert_kernels=True)}
"""Versions that the contract tests have passed on. Any other is refused."""

MEMORY = Path("/dev/shm")
"""Where files are memory, on Linux."""
FILE = "model.safetensors"
"""The name by which vLLM finds weights in a folder."""
CPU_BLOCK = 32
"""Tokens of a cache block on a CPU: the smallest that its kernels like, so that short prompts are shared too."""
LEAST_TEMPERATURE = 0.01
"""vLLM raises a lower one to this, and would sample from another distribution than was asked for."""
LOGPROBS = "processed_logprobs"
"""vLLM's name for the log-probabilities after temperature, top-k and top-p."""

PROBE = 8
"""Token, responses and length of the check at the start."""
MOST_APART = 0.3
"""Nats. FP8 weights and cache stay below 0.1 on models of random weights; experts read in the wrong order gave 0.7."""

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # this process's threads are the trainer's as well
}
"""What vLLM reads from nowhere else. Values that the user has set are left alone."""


class MissingVLLM(EngineError):
    """vLLM is not installed, or in a version that is not known here."""


class VLLMEngine:
    """An inference engine that is vLLM. See `engine.base.Engine`.

    Args:
        model: the trained model; vLLM builds its own from the config, and takes the weights.
        end_tokens: ids that end a response.
        precision: `fp8`: weights of linears and experts in e4m3: vLLM's own on a GPU; on a CPU they are rounded before
            vLLM gets them, and activations are not.
        kv_precision: `fp8`: vLLM keeps keys and values in e4m3; on a CPU that needs AVX-512 or AMX. `auto`: `fp8` where
            it works, else `native`; the plan and engine.json say which.
        max_sequences: Most sequences decoded side by side.
        batch_tokens: Most tokens in one forward; a longer prompt is computed in pieces.
        cache_gib: GiB of memory for keys and values. It must hold one sequence of the model's whole context.

    Raises:
        MissingVLLM: vLLM is not installed, or in another version than those of `SUPPORTED`.
        EngineError: vLLM refuses the model or the options, or has no memory for them.
    """

    kind: ClassVar[str] = "vllm"

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        end_tokens: set[int],
        precision: Literal["native", "fp8"] = "native",
        kv_precision: Literal["native", "fp8", "auto"] = "native",
        max_sequences: AtOnce = 256,
        batch_tokens: FedTokens = 4096,
        cache_gib: Annotated[float, Within(gt=0.0, le=65_536.0)] = 1.0,
    ):
        self._version_of_vllm = require_vllm()
        self._model, self._ends = model, sorted(end_tokens)
        self._shapes = {name: weight.shape for name, weight in model.named_parameters()}
        blocks = moe_blocks(model)
        self._moe_layers = _layers_of(model, [block for block, _ in blocks])
        self._experts = max((experts for _, experts in blocks), default=0)
        self._slots = slots_of(blocks[0][0]) if blocks else None
        self._context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._rope = rope_length(model.config)
        self._on_cpu = _runs_on_cpu()
        kv = resolve_kv_precision(kv_precision, model.config, on_cpu=self._on_cpu)
        own = precision == "fp8" and not self._on_cpu
        self._rounded = quantised_weights(model) if precision == "fp8" and self._on_cpu else {}
        options = {
            "dtype": str(model.dtype).removeprefix("torch."),
            "quantization": "fp8" if own else None,
            "kv_cache_dtype": "fp8" if kv == "fp8" else "auto",
            "kv_cache_memory_bytes": int(cache_gib * 2**30),
            "max_num_seqs": max_sequences,
            "max_num_batched_tokens": max(batch_tokens, max_sequences),
            "enable_return_routed_experts": bool(self._moe_layers),
            **({} if self._rope is None else {"max_model_len": self._rope}),  # else vLLM takes longrope's long factors
            **({"enforce_eager": True, "block_size": CPU_BLOCK} if self._on_cpu else {}),
        }
        self._facts = {
            "engine": "vllm",
            "version": self._version_of_vllm,
            "device": "cpu" if self._on_cpu else "cuda",
            "dtype": options["dtype"],
            "weights": "fp8 (e4m3), by vLLM" if own else "fp8 (e4m3), rounded before" if self._rounded else "native",
            "activations": "fp8 (e4m3), by vLLM" if own else "native",
            "kv_cache": "fp8 (e4m3), by vLLM" if kv == "fp8" else "native",
            "logprobs": LOGPROBS,
        }
        if kv_precision == "auto" and (reason := no_fp8_cache(model.config, on_cpu=self._on_cpu)) is not None:
            self._facts["kv_cache_reason"] = reason
        self._version, self._intact, self._closed = 0, True, False
        saved = copy.deepcopy(model.config)
        saved.architectures = [type(model).__name__]  # only a saved model's config names it
        with _folder() as folder:
            saved.save_pretrained(folder)
            self._write(folder, dict(model.named_parameters()))
            self._llm: Any = _start(folder, options, on_cpu=self._on_cpu)
        try:
            self._check_against_model()
        except UserError:
            self.close()
            raise

    @property
    def policy_version(self) -> int:
        """Gradient steps behind the weights it holds."""
        return self._version

    @property
    def facts(self) -> Mapping[str, str | int | float]:
        """What is in force."""
        return self._facts

    def load_weights(self, weights: Mapping[str, Tensor], *, policy_version: int) -> None:
        """Hand the trainer's weights to vLLM, and have it forget every prompt it has computed.

        Raises:
            EngineError: the weights are not the model's, and nothing was changed; or the hand-over broke off, and then
                the engine refuses to sample until one has gone well.
        """
        self._check_open()
        check_weights(weights, self._shapes)
        self._intact = False  # until all is well: whatever is raised below, what vLLM holds may be half new
        try:
            self._send_file(weights) if self._on_cpu else self._send_handles(weights)
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise EngineError(
                f"the weights of policy version {policy_version} did not reach vLLM: {type(error).__name__}: {error}"
            ) from error
        self._forget_prompts()
        self._version, self._intact = policy_version, True

    def generate(
        self, prompts: Sequence[Sequence[int]], *, responses: int, sampling: Sampling, seed: int
    ) -> list[list[Completion]]:
        """Sample `responses` completions for each prompt, which is computed once for all of them."""
        self._check_open()
        if not self._intact:
            raise EngineError("the last update of weights failed: vLLM may hold half of them. Load the weights again")
        if 0.0 < sampling.temperature < LEAST_TEMPERATURE:
            raise EngineError(
                f"temperature = {sampling.temperature} is below {LEAST_TEMPERATURE}, vLLM's least; use 0 for greedy"
            )
        check_prompts(
            prompts,
            vocabulary=self._model.config.get_text_config().vocab_size,
            context=self._context,
            rope=self._rope,
            max_new_tokens=sampling.max_new_tokens,
        )
        self._forget_prompts()  # what earlier calls left in the cache must not decide over a bit of this one
        greedy = sampling.temperature == 0.0  # a certainty: sampled once, with log-probability 0
        asked = self._parameters(sampling, responses=1 if greedy else responses, prompts=len(prompts), seed=seed)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            found = self._llm.generate([{"prompt_token_ids": list(p)} for p in prompts], asked, use_tqdm=False)
        answers = [
            [self._completion(len(prompt), output, greedy=greedy) for output in request.outputs]
            for prompt, request in zip(prompts, found, strict=True)
        ]
        return [group * responses if greedy else group for group in answers]

    def close(self) -> None:
        """Give back vLLM's memory, and on a GPU its process. A closed engine samples no more.

        On a CPU vLLM's own shutdown would end the process groups of every vLLM in this process: letting go is enough.
        """
        if not self._closed and not self._on_cpu:
            self._llm.llm_engine.engine_core.shutdown()
        self._llm, self._closed = None, True

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("this engine was closed")

    def _parameters(self, sampling: Sampling, *, responses: int, prompts: int, seed: int) -> list[Any]:
        """How vLLM is to answer each prompt.

        On a GPU every prompt has a seed of its own, and its n responses those that follow. On a CPU vLLM breaks off
        when a prompt that has a seed is computed in pieces; there, all numbers come from this process's generator.
        """
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        common = {
            "n": responses,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_tokens": sampling.max_new_tokens,
            "stop_token_ids": self._ends,
            "ignore_eos": True,  # the recipe says what ends a response, the config does not
            "logprobs": 0,
            "flat_logprobs": True,
            "detokenize": False,
        }
        own = torch.randint(2**62, (prompts,), generator=torch.Generator().manual_seed(seed)).tolist()
        return [SamplingParams(**common, seed=None if self._on_cpu else one) for one in own]

    def _completion(self, prompt: int, output: Any, *, greedy: bool) -> Completion:
        """One of vLLM's outputs as a record, or an error where something is missing from it."""
        ids = tuple(output.token_ids)
        if output.finish_reason not in ("stop", "length"):
            raise EngineError(f"vLLM ended a response with {output.finish_reason!r} after {len(ids)} tokens")
        if output.logprobs is None or tuple(output.logprobs.token_ids) != ids:
            raise EngineError(f"vLLM did not return the log-probability of each of {len(ids)} sampled tokens")
        routes = None
        if self._moe_layers:
            routes = checked_routes(
                output.routed_experts,
                rows=prompt + len(ids) - 1,
                layers=self._moe_layers,
                slots=self._slots,
                experts=self._experts,
            )
        return Completion(
            token_ids=ids,
            logprobs=torch.zeros(len(ids)) if greedy else torch.tensor(output.logprobs.logprobs),
            routes=routes,
            finish_reason=output.finish_reason,
            policy_version=self._version,
        )

    @torch.no_grad()
    def _check_against_model(self) -> None:
        """Hand over the weights once, and hold what vLLM then says of a few tokens against the model's own forward.

        A kernel that lacks the model's sizes, or an update that leaves weights where the kernel misreads them, would
        otherwise be found in training, or not at all.
        """
        name = type(self._model).__name__
        self.load_weights(dict(self._model.named_parameters()), policy_version=0)
        sampling = Sampling(temperature=1.0, max_new_tokens=min(PROBE, (self._context or PROBE + 1) - 1))
        try:
            (answers,) = self.generate([[PROBE]], responses=PROBE, sampling=sampling, seed=0)
        except RuntimeError as error:
            raise EngineError(f"vLLM cannot compute {name}: {error}") from error
        apart = []
        for answer in answers:
            ids = torch.tensor([[PROBE, *answer.token_ids]], device=self._model.device)
            logprobs = self._model(input_ids=ids[:, :-1], use_cache=False).logits.float().log_softmax(-1)
            apart.append(logprobs.gather(2, ids[:, 1:, None]).flatten().cpu() - answer.logprobs)
        mean = torch.cat(apart).abs().mean().item()
        if mean > MOST_APART:
            raise EngineError(
                f"vLLM {self._version_of_vllm} gives {name} other log-probabilities than the trainer on the same "
                f"weights: {mean:.3g} nats apart on average; precision explains {MOST_APART} at most"
            )

    def _forget_prompts(self) -> None:
        if not self._llm.reset_prefix_cache():
            raise EngineError("vLLM did not reset its prefix cache, which holds keys and values of earlier weights")

    def _write(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write the weights as a file that vLLM reads.

        Raises:
            EngineError: there is no room for them, or they cannot be written.
        """
        tensors = {name: tensor.contiguous().cpu() for name, tensor in self._checkpoint(weights).items()}
        needed, free = sum(tensor.nbytes for tensor in tensors.values()), shutil.disk_usage(folder).free
        if needed > free:
            raise EngineError(
                f"the weights go to vLLM as a file in {folder.parent}, which has {free / 2**30:.3g} GiB free; "
                f"they take {needed / 2**30:.3g} GiB. Make it larger (--shm-size of a container) or empty it"
            )
        try:
            save_file(tensors, folder / FILE, metadata={"format": "pt"})
        except (OSError, SafetensorError) as error:
            raise EngineError(f"the weights for vLLM cannot be written to {folder.parent}: {error}") from error

    @torch.no_grad()
    def _checkpoint(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The trainer's weights, rounded where this precision rounds, and the model's buffers, by the names on disk."""
        names = {id(parameter): name for name, parameter in self._model.named_parameters()}  # tied ones: the first name
        rounded = {n: round_e4m3(w, dim=self._rounded[n]) if n in self._rounded else w for n, w in weights.items()}
        state = {}
        for name, tensor in self._model.state_dict(keep_vars=True).items():
            own = names.get(id(tensor), name)
            if own == name:  # a buffer, or a parameter by its first name: tied ones are stored once
                state[name] = rounded.get(name, tensor)
        return {name: tensor.detach() for name, tensor in revert_weight_conversion(self._model, state).items()}

    def _send_file(self, weights: Mapping[str, Tensor]) -> None:
        with _folder() as folder:
            self._write(folder, weights)
            self._llm.collective_rpc(_load, args=(folder / FILE, SUPPORTED[self._version_of_vllm]))

    def _send_handles(self, weights: Mapping[str, Tensor]) -> None:
        """Hand over GPU memory by its handles; the tensors must live until vLLM has read them. Not run here."""
        from torch.multiprocessing.reductions import reduce_tensor

        tensors = {name: tensor.contiguous() for name, tensor in self._checkpoint(weights).items()}
        gpu = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        torch.cuda.synchronize()
        self._llm.start_weight_update()
        self._llm.update_weights(
            {
                "update_info": {
                    "names": list(tensors),
                    "dtype_names": [str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()],
                    "shapes": [list(tensor.shape) for tensor in tensors.values()],
                    "ipc_handles": [{gpu: reduce_tensor(tensor)[1]} for tensor in tensors.values()],
                }
            }
        )
        self._llm.finish_weight_update()
        torch.cuda.ipc_collect()


def require_vllm() -> str:
    """The version of vLLM that is installed.

    Raises:
        MissingVLLM: there is none, or one that is not in `SUPPORTED`.
    """
    if importlib.util.find_spec("vllm") is None:
        raise MissingVLLM('engine.kind = "vllm", but vLLM is not installed; `make vllm` installs it')
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    import vllm  # pyright: ignore[reportMissingImports]

    if vllm.__version__ not in SUPPORTED:
        raise MissingVLLM(
            f'engine.kind = "vllm": vLLM {vllm.__version__} is not supported; {", ".join(SUPPORTED)} is. '
            "`make vllm` installs it"
        )
    return vllm.__version__


def _runs_on_cpu() -> bool:
    from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

    return current_platform.is_cpu()


def _start(folder: Path, options: Mapping[str, Any], *, on_cpu: bool) -> Any:
    """vLLM around a saved model."""
    from vllm import LLM  # pyright: ignore[reportMissingImports]
    from vllm.config import WeightTransferConfig  # pyright: ignore[reportMissingImports]

    # one process with the trainer, or, where GPU memory is handed over, two: handles of it are Python objects
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if on_cpu else "1"
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "0" if on_cpu else "1"
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    logged: list[str] = []
    try:
        with exceptions_logged(logged):
            llm = LLM(
                str(folder),
                skip_tokenizer_init=True,  # token ids in, token ids out
                generation_config="vllm",
                logprobs_mode=LOGPROBS,
                disable_log_stats=True,
                use_tqdm_on_load=False,
                weight_transfer_config=None if on_cpu else WeightTransferConfig(backend="ipc"),
                **options,
            )
    except REFUSALS as error:
        cause = last_cause(error, logged)
        raise EngineError(f"vLLM cannot start: {cause}.{MEMORY_HINT if 'memory' in cause.lower() else ''}") from error
    finally:  # vLLM's worker takes torch's function away, and the trainer's number of threads with it
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
    if not on_cpu:
        llm.init_weight_transfer_engine({"init_info": {"packed": False}})
    return llm


@torch.no_grad()
def _load(worker: Any, file: Path, release: Release) -> None:
    """Load a checkpoint on a CPU by the steps of vLLM's own start: weights by their names, then the kernels' layout.

    vLLM's `reload_weights` takes these steps layer by layer, and loads every tensor twice, so that captured graphs
    stay valid. There are none here.

    Raises:
        ValueError: the checkpoint leaves weights of vLLM's model unfilled, or not numbers.
    """
    from vllm.model_executor.model_loader.utils import process_weights_after_loading  # pyright: ignore[reportMissingImports]

    model = worker.get_model()
    _unpack(model, release)
    for weight in model.parameters():
        weight.fill_(math.nan)
    model.load_weights(load_file(file).items())
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


def _layers_of(model: PreTrainedModel, blocks: Sequence[nn.Module]) -> list[int]:
    """Which layers of the decoder these blocks are, by the first number in their names."""
    wanted = {id(block) for block in blocks}
    names = [name.split(".") for name, module in model.named_modules() if id(module) in wanted]
    return [int(next(part for part in name if part.isdigit())) for name in names]


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder in memory, gone at the end."""
    path = Path(tempfile.mkdtemp(prefix="steadyrl-", dir=MEMORY if MEMORY.is_dir() else None))
    try:
        yield path
    finally:
        shutil.rmtree(path)
