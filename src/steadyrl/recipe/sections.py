"""The sections of a recipe that come in one kind, and the two kinds of model."""

import datetime
import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from steadyrl.options.bounds import (
    AtOnce,
    Bound,
    Count,
    Decay,
    FedTokens,
    Fraction,
    JsonDict,
    Name,
    PathOrName,
    PositiveFloat,
    PositiveInt,
    Temperature,
    Weight,
    Within,
)
from steadyrl.recipe.base import Section


class PretrainedModel(Section):
    """A causal language model of transformers, from a folder or from the hub."""

    kind: Literal["pretrained"] = "pretrained"
    path: PathOrName
    """Folder of a saved model, or its name on the hub."""
    revision: str | None = None
    """Commit, branch or tag on the hub."""
    trust_remote_code: bool = False
    """Run the model's own Python code. Off: a model that needs it is refused."""


_SIZES = {
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
}


class TinyModel(Section):
    """A small model with random weights, built from its transformers config, with a character tokenizer."""

    kind: Literal["tiny"] = "tiny"
    family: str = "qwen3_moe"
    """The `model_type` of transformers."""
    alphabet: str = "0123456789+-=;>"
    """The characters the tokenizer knows, one token each."""
    config: JsonDict = Field(default_factory=dict)
    """Fields of the transformers config: sizes, experts, heads."""

    @field_validator("config")
    @classmethod
    def _sizes(cls, config: JsonDict) -> JsonDict:
        for name, value in config.items():
            most = 1024 if "layers" in name else 2**24
            if isinstance(value, int | float) and not abs(value) <= most:
                raise ValueError(f"{name} = {value} is above {most:,}, the most that a tiny model may have")
            if name in _SIZES and isinstance(value, int) and value < 1:
                raise ValueError(f"{name} = {value} makes no model; use at least 1")
        return config


class Runtime(Section):
    """Precision, device, memory and threads of the trained model."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the weights, the forward and the optimizer's moments. There is no float32 copy of bfloat16 weights:
    an update below about 1/256 of a weight is lost, so small learning rates want float32."""
    device: str = "cpu"
    """`cpu`, `cuda`, `cuda:1`, …"""

    @field_validator("device")
    @classmethod
    def _supported(cls, value: str) -> str:
        if not re.fullmatch(r"cpu|cuda(:\d{1,2})?", value):
            raise ValueError(f'{value!r} is not supported; use "cpu", "cuda" or "cuda:1"')
        return value

    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    threads: Annotated[int, Within(ge=0, le=4096)] = 0
    """CPU threads of torch; 0 keeps torch's own choice. A run resumes bit-identically on the same number."""


class Verifier(Section):
    """Limits on the verifier, which runs in worker processes."""

    time_limit: Annotated[float, Within(gt=0.0, le=86_400.0)] = 10.0
    """Seconds the verifier may take for one response; then its worker is stopped and the response is marked."""
    workers: Annotated[int, Within(ge=1, le=1024)] = 1
    """Worker processes."""
    max_failures: Fraction = 0.1
    """Largest share of a step's responses on which the verifier may raise, hang or return NaN before the run stops."""
    environment: tuple[Name, ...] = ()
    """Environment variables that workers get, such as `OPENAI_API_KEY`; without it, only those of an allow-list."""
    closed: bool = False
    """Also your own function gets no network and no files but those in its folder, which it can read. Ours never do."""
    memory_gib: Annotated[float, Within(gt=0.0, le=1e6)] = 8.0
    """GiB of memory that a worker, and each process it starts, may use."""
    folder: PathOrName | None = None
    """Working directory of your own function; by default the folder of the recipe."""
    audit: bool = True
    """At the start of a run, try right responses and junk on a few problems and warn where junk is paid."""

    def of_workers(self) -> JsonDict:
        """The fields that a pool of workers is built with."""
        return self.model_dump(exclude={"max_failures", "audit"})


class Rollout(Section):
    """What one global step samples."""

    prompts: Annotated[int, Within(ge=1, le=2**20)] = 16
    """B: prompts per global step."""
    responses: Annotated[int, Within(ge=2, le=2**16)] = 8
    """G: responses per prompt; the advantage is relative to this group."""
    temperature: Temperature = 1.0
    """Sampling temperature. π and μ are both the distributions at this temperature."""
    max_new_tokens: FedTokens = 64
    """A response that reaches this length is cut and counted as truncated."""
    stop: tuple[str, ...] = ()
    """Strings of a single token that end a response, beside the model's own end of sequence."""
    strip_special: bool = False
    """Verifiers get responses without special tokens such as `<think>`; off: without end tokens and padding alone."""


class Update(Section):
    """How one global batch becomes gradient steps."""

    minibatches: PositiveInt = 1
    """N: gradient steps per global step. It must divide the prompts of a step."""
    replay: Literal["none", "R2", "R3"] = "none"
    """Routing Replay: experts of the trainer's θ_old pass (R2), or of the rollout engine (R3)."""
    max_unrouted: Fraction = 0.0
    """Largest share of positions for which the engine may return no experts; the trainer routes them by itself."""
    micro_tokens: FedTokens = 8192
    """Most tokens in one forward, shared prompts counted for each response; a mini-batch takes as many as it needs."""


class Optimizer(Section):
    """AdamW and its schedule."""

    learning_rate: PositiveFloat = 1e-6
    """Peak learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Decay of the first and second moment."""
    weight_decay: Weight = 0.0
    """Decoupled weight decay."""
    max_grad_norm: Bound = 1.0
    """Gradients are scaled down to this norm; `inf` leaves them."""
    warmup_steps: Count = 0
    """Gradient steps over which the learning rate rises linearly."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the learning rate after the warm-up; linear and cosine would reach 0 one step after the last."""


class Stage(Section):
    """One stretch of the cold start."""

    steps: PositiveInt
    """Gradient steps."""
    learning_rate: PositiveFloat = 3e-3
    """Constant learning rate of this stage."""
    task: JsonDict = Field(default_factory=dict)
    """Task fields that this stage changes, such as `max_terms` (a curriculum)."""


class ColdStart(Section):
    """Supervised training on worked solutions before the reinforcement learning."""

    stages: tuple[Stage, ...] = Field(min_length=1)
    """Stages, in order."""
    batch: Annotated[int, Within(ge=1, le=2**20)] = 128
    """Worked solutions per gradient step."""
    aux_loss: Weight = 0.0
    """Weight of the load-balancing loss of mixture-of-experts models; used in the cold start only."""
    stop_at: Fraction = 1.0
    """Stop once the sampled accuracy on held-out prompts reaches this. They are those of the evaluation at step 0,
    so its accuracy is slightly optimistic."""
    check_every: PositiveInt = 20
    """Steps between looks at that accuracy, in the last stage."""


class EvaluationSet(Section):
    """Further question/answer pairs that are evaluated beside the held-out ones, and never trained on."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
    """What `eval.jsonl` calls it."""
    path: PathOrName
    """As `task.path`."""
    subset: str | None = None
    """As `task.subset`."""
    split: str = "train"
    """As `task.split`."""
    question_column: str | None = None
    """As `task.question_column`, which it is by default."""
    answer_column: str | None = None
    """As `task.answer_column`, which it is by default."""
    prompts: PositiveInt | None = None
    """How many of its problems are asked, the first; by default all."""

    @field_validator("name")
    @classmethod
    def _not_a_split(cls, value: str) -> str:
        if value in ("train", "held_out"):
            raise ValueError(f"name = {value!r} is reserved for the task's own problems; use another name")
        return value


class Evaluate(Section):
    """Accuracy on held-out prompts."""

    every: Count = 20
    """Global steps between evaluations; 0: only before and after."""
    prompts: Annotated[int, Within(ge=1, le=2**20)] = 256
    """Held-out prompts."""
    samples: AtOnce = 1
    """Responses per prompt (the k of avg@k)."""
    temperature: Temperature = 1.0
    """Temperature of the sampled evaluation."""
    top_p: Annotated[float, Within(gt=0.0, le=1.0)] = 1.0
    """Nucleus of the sampled evaluation."""
    top_k: Annotated[int, Within(ge=0, le=2**31 - 1)] = 0
    """The sampled evaluation keeps this many tokens; 0: all."""
    sets: tuple[EvaluationSet, ...] = ()
    """Further sets of question/answer pairs, each `[[evaluate.sets]]` with a name and a path."""


class Rollouts(Section):
    """Which training responses are written to `rollouts.jsonl`."""

    groups: Count = 2
    """Groups of a step that are written."""
    every: PositiveInt = 1
    """Steps between those that are written."""


class Prompt(Section):
    """How questions become prompts."""

    date: str | None = None
    """The date, as `2026-01-31`, that a chat template which asks for it gets; by default the day the run began."""

    @field_validator("date", mode="before")
    @classmethod
    def _a_day(cls, value: Any) -> Any:
        if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
            return value.isoformat()  # TOML has dates of its own
        if isinstance(value, str) and not re.fullmatch(r"\d{4}-\d\d-\d\d", value, re.ASCII):
            raise ValueError(f"{value!r} is not a date such as 2026-01-31")
        return datetime.date.fromisoformat(value).isoformat() if isinstance(value, str) else value


class Checkpoints(Section):
    """What is kept on disk."""

    every: PositiveInt = 20
    """Global steps between checkpoints."""
    keep: PositiveInt = 2
    """How many are kept; the newest always is."""
