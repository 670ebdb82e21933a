"""The engine that is vLLM: on a CPU in this process, on a GPU in a process of its own (**not run**)."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from steadyrl.engine.base import Answer, EngineError, Request, generate
from steadyrl.engine.common import BaseEngine
from steadyrl.engine.kv_cache import no_fp8_cache, resolve_kv_precision
from steadyrl.engine.precision import quantised_weights
from steadyrl.engine.vllm.answers import completions_of, experts_of, parameters_of
from steadyrl.engine.vllm.release import SUPPORTED, require_vllm, runs_on_cpu
from steadyrl.engine.vllm.start import LOGPROBS, start
from steadyrl.engine.vllm.weights import checkpoint, send
from steadyrl.errors import UserError
from steadyrl.options.bounds import AtOnce, FedTokens, Within
from steadyrl.types import Sampling

CPU_BLOCK = 32
"""Tokens of a cache block on a CPU: the smallest that its kernels like, so that short prompts are shared too."""
LEAST_TEMPERATURE = 0.01
"""vLLM raises a lower one to this, and would sample from another distribution than was asked for."""

PROBE = 8
"""Token, responses and length of the check at the start."""
MOST_APART = 0.3
"""Nats. FP8 weights and cache stay below 0.1 on models of random weights; experts read in the wrong order gave 0.7."""


class VLLMEngine(BaseEngine):
    """An inference engine that is vLLM. See `engine.base.Engine`.

    On a CPU all requests that wait together draw from one stream of random numbers, so they must have the same seed,
    and an answer depends on all of them: vLLM breaks off there when a prompt with a seed of its own is computed in
    pieces. On a GPU each request has a seed of its own.

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
        super().__init__(model)
        self._release = require_vllm()
        self._model, self._ends, self._experts = model, sorted(end_tokens), experts_of(model)
        self._on_cpu = runs_on_cpu()
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
            "enable_return_routed_experts": self._experts is not None,
            **({} if self._rope is None else {"max_model_len": self._rope}),  # else vLLM takes longrope's long factors
            **({"enforce_eager": True, "block_size": CPU_BLOCK} if self._on_cpu else {}),
        }
        self._facts = {
            "engine": "vllm",
            "version": self._release,
            "device": "cpu" if self._on_cpu else "cuda",
            "dtype": options["dtype"],
            "weights": "fp8 (e4m3), by vLLM" if own else "fp8 (e4m3), rounded before" if self._rounded else "native",
            "activations": "fp8 (e4m3), by vLLM" if own else "native",
            "kv_cache": "fp8 (e4m3), by vLLM" if kv == "fp8" else "native",
            "logprobs": LOGPROBS,
        }
        if kv_precision == "auto" and (reason := no_fp8_cache(model.config, on_cpu=self._on_cpu)) is not None:
            self._facts["kv_cache_reason"] = reason
        self._closed = self._asleep = False
        self._drawn = torch.get_rng_state()
        self._llm: Any = start(model, options, on_cpu=self._on_cpu)
        try:
            self._check_against_model()
        except UserError:
            self.close()
            raise

    def submit(self, requests: Sequence[Request]) -> None:
        """Take requests, or none of them."""
        self._require_open()
        if self._asleep:
            raise EngineError("the engine sleeps: update its weights and call wake() first")
        for request in requests:
            if 0.0 < request.sampling.temperature < LEAST_TEMPERATURE:
                raise EngineError(
                    f"temperature = {request.sampling.temperature} is below {LEAST_TEMPERATURE}, vLLM's least; "
                    "use 0 for greedy"
                )
        if self._on_cpu and len({request.seed for request in (*self._waiting.values(), *requests)}) > 1:
            raise EngineError("on a CPU vLLM answers requests of one seed at a time: collect the others first")
        super().submit(requests)

    def collect(self) -> Iterator[Answer]:
        """Answer the requests that wait, each as it ends."""
        try:
            while self._waiting:
                for output in self._step():
                    if output.finished:
                        request = self._waiting.pop(int(output.request_id))
                        found = completions_of(request, output, self._experts, self._version)
                        yield Answer(place=request.place, completions=found)
        finally:
            if self._waiting:
                self._llm.llm_engine.abort_request(list(map(str, self._waiting)))
                self._waiting.clear()

    def sleep(self) -> None:
        """On a GPU, give back the memory of weights and cache. **Not run.** On a CPU vLLM cannot."""
        self._require_open()
        self._require_idle("let the engine sleep")
        if not self._on_cpu and not self._asleep:
            self._llm.sleep(level=2)
            self._asleep, self._whole = True, False

    def wake(self) -> None:
        """Take the memory again that `sleep` gave back; an update has taken that of the weights already."""
        self._require_open()
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False

    def close(self) -> None:
        """Give back vLLM's memory, and on a GPU its process. A closed engine samples no more.

        On a CPU vLLM's own shutdown would end the process groups of every vLLM in this process: letting go is enough.
        """
        if not self._closed and not self._on_cpu:
            self._llm.llm_engine.engine_core.shutdown()
        self._llm, self._closed = None, True
        self._waiting.clear()

    def _require_open(self) -> None:
        if self._closed:
            raise EngineError("this engine was closed")

    def _add(self, requests: Sequence[Request]) -> None:
        """Hand requests to vLLM; the first ones find an empty prefix cache, so that no earlier call decides a bit."""
        from vllm.inputs import tokens_input  # pyright: ignore[reportMissingImports]

        asked = [parameters_of(request, ends=self._ends, own_seed=not self._on_cpu) for request in requests]
        if not self._waiting and requests:
            self._forget_prompts()
            self._drawn = torch.Generator().manual_seed(requests[0].seed).get_state()
        for request, parameters in zip(requests, asked, strict=True):
            prompt = tokens_input(list(request.token_ids))
            self._llm.llm_engine.add_request(str(request.place), prompt, parameters)

    def _step(self) -> Sequence[Any]:
        """One forward of vLLM. On a CPU it draws from this process's generator, which is the trainer's in between."""
        with torch.random.fork_rng(devices=()):
            torch.set_rng_state(self._drawn)
            found = self._llm.llm_engine.step()
            self._drawn = torch.get_rng_state()
        return found

    def _take_over(self, tensors: Iterator[tuple[str, Tensor]]) -> None:
        """Hand the trainer's weights to vLLM, and have it forget every prompt it has computed."""
        self._require_open()
        weights = checkpoint(self._model, dict(tensors), self._rounded)
        if self._asleep:
            self._llm.wake_up(tags=["weights"])
        try:
            send(self._llm, weights, SUPPORTED[self._release], on_cpu=self._on_cpu)
        except (RuntimeError, ValueError) as error:
            raise EngineError(f"the new weights did not reach vLLM: {type(error).__name__}: {error}") from error
        self._forget_prompts()

    def _forget_prompts(self) -> None:
        if not self._llm.reset_prefix_cache():
            raise EngineError("vLLM did not reset its prefix cache, which holds keys and values of earlier weights")

    @torch.no_grad()
    def _check_against_model(self) -> None:
        """Hand over the weights once, and hold what vLLM then says of a few tokens against the model's own forward.

        A kernel that lacks the model's sizes, or an update that leaves weights where the kernel misreads them, would
        otherwise be found in training, or not at all.
        """
        name = type(self._model).__name__
        self.update_weights(self._model.named_parameters(), version=0)
        sampling = Sampling(temperature=1.0, max_new_tokens=min(PROBE, (self._context or PROBE + 1) - 1))
        try:
            (answers,) = generate(self, [[PROBE]], responses=PROBE, sampling=sampling, seed=0)
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
                f"vLLM {self._release} gives {name} other log-probabilities than the trainer on the same "
                f"weights: {mean:.3g} nats apart on average; precision explains {MOST_APART} at most"
            )
