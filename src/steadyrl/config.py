"""The recipe: one frozen tree that says everything a run depends on.

A recipe is a TOML file. It chooses the variants (which model, task, engine, objective); single values are then
changed from the command line (``--optimizer.learning_rate 1e-4``). `algo`, `model`, `engine` and `tasks` never read
this tree: their functions take plain keyword arguments.
"""

import datetime
import difflib
import json
import math
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from steadyrl.errors import UserError
from steadyrl.renamed import new_field, translate_recipe


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"must be a number (found {str(value).lower()})")
    return value


NUMBER = BeforeValidator(_no_boolean)  # pydantic takes true for 1
Fraction = Annotated[float, Field(ge=0.0, le=1.0), NUMBER]
Decay = Annotated[float, Field(ge=0.0, lt=1.0), NUMBER]
PositiveFloat = Annotated[float, Field(gt=0.0, le=1e30, allow_inf_nan=False), NUMBER]
Weight = Annotated[float, Field(ge=0.0, le=1e9, allow_inf_nan=False), NUMBER]
PositiveInt = Annotated[int, Field(ge=1, le=10**9), NUMBER]
Count = Annotated[int, Field(ge=0, le=10**9), NUMBER]
Temperature = Annotated[float, Field(ge=1e-3, le=1e3), NUMBER]
AtOnce = Annotated[int, Field(ge=1, le=2**16), NUMBER]
"""How many things exist side by side: processes, sequences, responses to one prompt."""
FedTokens = Annotated[int, Field(ge=1, le=2**26), NUMBER]
"""Tokens of one forward."""
Bound = Annotated[PositiveFloat | None, BeforeValidator(lambda value: None if value == math.inf else value)]
"""A bound from above; `inf`, which is null in JSON, is none."""


def _names_something(value: str) -> str:
    if not value.strip() or not value.isprintable():
        raise ValueError(f"must be printable text that is not empty (found {value!r})")
    return value


Name = Annotated[str, AfterValidator(_names_something)]
"""A path, or a name."""
Place = Annotated[Name, AfterValidator(os.path.expanduser)]
"""A path, or a name; `~` is the home folder, and a run remembers the whole path."""
JsonDict = dict[str, Any]
Trust = Literal[
    "none",
    "clip",
    "rollout_clip",
    "tv",
    "kl",
    "sequence_mask",
    "old_sequence_mask",
    "clip+sequence_mask",
    "clip+old_sequence_mask",
    "rollout_clip+sequence_mask",
    "second_moment",
]
"""What a composed objective masks; `a+b` is what one of the two masks."""
SEEN = "seen"
"""The section that a run adds to its own recipe: digests of what it reads. It is no part of the recipe."""


class RecipeError(UserError):
    """A recipe, or a flag, that cannot be run. The message names the field, the value and the way out."""


class Section(BaseModel):
    """A part of the recipe: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class PretrainedModel(Section):
    """A causal language model of transformers, from a folder or from the hub."""

    kind: Literal["pretrained"] = "pretrained"
    path: Place
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
    threads: Annotated[int, Field(ge=0, le=4096), NUMBER] = 0
    """CPU threads of torch; 0 keeps torch's own choice. A run resumes bit-identically on the same number."""


class AnyTask(Section):
    """What every task has."""

    correct_at: Annotated[float, Field(ge=-1e9, le=1e9), NUMBER] = 1.0
    """A response with at least this reward is right: accuracy counts these."""


class ChainsTask(AnyTask):
    """Chains of + and − modulo ten, worked out with running totals; the task of the demo."""

    kind: Literal["chains"] = "chains"
    min_terms: Annotated[int, Field(ge=2, le=40), NUMBER] = 3
    """Fewest digits in a chain."""
    max_terms: Annotated[int, Field(ge=2, le=40), NUMBER] = 8
    """Most digits in a chain."""
    teacher_noise: Fraction = 0.0
    """Chance that a worked solution replaces a running total by a random digit, and carries it on."""
    style: Literal["steps", "short", "checked"] = "steps"
    """How a worked solution writes 3 + 9: 3+9=2; or short, 3+9; or with its inverse, 3+9=2;2-9=3;"""

    @model_validator(mode="after")
    def _ordered(self) -> "ChainsTask":
        if self.min_terms > self.max_terms:
            raise ValueError(f"min_terms = {self.min_terms} is above max_terms = {self.max_terms}")
        return self


class RowsTask(AnyTask):
    """Rows of digits, each summed along itself from the one above; responses of hundreds of tokens, for the lab."""

    kind: Literal["rows"] = "rows"
    width: Annotated[int, Field(ge=2, le=40), NUMBER] = 12
    """Digits of a row."""
    min_rows: Annotated[int, Field(ge=1, le=25), NUMBER] = 12
    """Fewest rows of a response; one is `width` + 2 tokens."""
    max_rows: Annotated[int, Field(ge=1, le=25), NUMBER] = 16
    """Most rows of a response."""
    teacher_noise: Fraction = 0.0
    """Chance that a worked solution replaces a digit by a random one, and carries it on."""

    @model_validator(mode="after")
    def _ordered(self) -> "RowsTask":
        if self.min_rows > self.max_rows:
            raise ValueError(f"min_rows = {self.min_rows} is above max_rows = {self.max_rows}")
        return self


class ReasoningGymTask(AnyTask):
    """Any dataset of reasoning-gym, with its own verifier."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    dataset: Name
    """Name in reasoning-gym, such as `chain_sum`."""
    parameters: JsonDict = Field(default_factory=dict)
    """Parameters of that dataset, as reasoning-gym spells them (`seed` and `size` are set by the run)."""
    min_reward: Fraction = 1.0
    """A reward below this counts as 0, and at or above it as 1; reasoning-gym gives partial credit."""
    allow_code: bool = False
    """Take a dataset whose verifier runs Python code from a response. Off: such a dataset is rejected."""


class QuestionsTask(AnyTask):
    """Question/answer pairs: a file, a folder or a Hugging Face dataset."""

    kind: Literal["questions"] = "questions"
    path: Place
    """A file (`.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv` or `.parquet`, each also with `.gz`); or the folder, or the
    name, of a Hugging Face dataset."""
    subset: str | None = None
    """Configuration of the Hugging Face dataset, where it has several, such as `main` of `openai/gsm8k`."""
    split: str = "train"
    """Split of the Hugging Face dataset; a file has none."""
    question_column: str = "question"
    """Field that holds the question, or the messages of a conversation; `a.b` is the field `b` of `a`."""
    answer_column: str = "answer"
    """Field that holds the reference answer, or a list of accepted ones."""
    solution_column: str | None = None
    """Field that holds a worked solution, which the cold start imitates; without it, the answer."""
    answer: Literal["auto", "boxed", "tag", "last_number"] = "auto"
    """Where `math_verify` looks for a response's answer: in the last `\\boxed{}`, in `<answer>` tags, or in the last
    number; `auto` tries them in this order, and `####` and "the answer is" too."""
    skip_bad_rows: bool = False
    """Leave rows out that cannot be used, and count them; off: they are rejected."""
    reward: Place = "math_verify"
    """`math_verify`, or your own function as `file.py:function`. The names of its parameters say what it gets:
    `reward(prompt, completion)`, TRL's `reward(prompts, completions)`, or verl's `compute_score(data_source,
    solution_str, ground_truth, extra_info)`; also `answer`, `prompt_text`, `finish_reason`, `token_ids`, any column,
    and `**kwargs`. It returns a number, or a dict with the number `score`; other numbers in it are logged as
    `reward/<name>`."""
    held_out: PositiveInt = 256
    """How many pairs are set aside for evaluation; never trained on."""

    PAIRS: ClassVar[frozenset[str]] = frozenset(
        {"path", "subset", "split", "question_column", "answer_column", "skip_bad_rows", "held_out"}
    )
    """The fields that say which pairs there are, and which of them are set aside."""


TaskConfig = Annotated[ChainsTask | RowsTask | ReasoningGymTask | QuestionsTask, Field(discriminator="kind")]


class Verifier(Section):
    """Limits on the verifier, which runs in worker processes."""

    time_limit: Annotated[float, Field(gt=0.0, le=86_400.0, allow_inf_nan=False), NUMBER] = 10.0
    """Seconds the verifier may take for one response; then its worker is stopped and the response is marked."""
    workers: Annotated[int, Field(ge=1, le=1024), NUMBER] = 1
    """Worker processes."""
    max_failures: Fraction = 0.1
    """Largest share of a step's responses on which the verifier may raise, hang or return NaN before the run stops."""
    environment: tuple[Name, ...] = ()
    """Environment variables that workers get, such as `OPENAI_API_KEY`; without it, only those of an allow-list."""
    closed: bool = False
    """Also your own function gets no network and no files but those in its folder, which it can read. Ours never do."""
    memory_gib: Annotated[float, Field(gt=0.0, le=1e6, allow_inf_nan=False), NUMBER] = 8.0
    """GiB of memory that a worker, and each process it starts, may use."""
    folder: Place | None = None
    """Working directory of your own function; by default the folder of the recipe."""
    audit: bool = True
    """At the start of a run, try right responses and junk on a few problems and warn where junk is paid."""

    def of_workers(self) -> JsonDict:
        """The fields that a pool of workers is built with."""
        return self.model_dump(exclude={"max_failures", "audit"})


class LocalEngine(Section):
    """The embedded engine: batched decoding in this process."""

    kind: Literal["local"] = "local"
    precision: Literal["native", "fp8", "fp8_e5m2", "int4", "fp4"] = "native"
    """`fp8`: weights and activations of linears and experts are rounded to e4m3, as FP8 engines do. Coarser, for
    studies: `fp8_e5m2` rounds activations to e5m2; `int4` and `fp4` (MXFP4) round weights to four bits."""
    kv_precision: Literal["native", "fp8"] = "native"
    """`fp8`: keys and values are rounded to e4m3 when they enter the cache."""
    max_sequences: AtOnce = 256
    """Most sequences decoded side by side."""


class VLLMEngine(Section):
    """vLLM, which `make vllm` installs."""

    kind: Literal["vllm"] = "vllm"
    precision: Literal["native", "fp8"] = "native"
    """`fp8`: weights of linears and experts in e4m3: vLLM's own on a GPU; on a CPU they are rounded before vLLM gets
    them, and activations are not."""
    kv_precision: Literal["native", "fp8", "auto"] = "native"
    """`fp8`: vLLM keeps keys and values in e4m3; on a CPU that needs AVX-512 or AMX. `auto`: `fp8` where it works, else
    `native`; the plan and engine.json say which."""
    max_sequences: AtOnce = 256
    """Most sequences decoded side by side."""
    batch_tokens: FedTokens = 4096
    """Most tokens in one forward; a longer prompt is computed in pieces."""
    cache_gib: Annotated[float, Field(gt=0.0, le=65_536.0), NUMBER] = 1.0
    """GiB of memory for keys and values. It must hold one sequence of the model's whole context."""


class Rollout(Section):
    """What one global step samples."""

    prompts: Annotated[int, Field(ge=1, le=2**20), NUMBER] = 16
    """B: prompts per global step."""
    responses: Annotated[int, Field(ge=2, le=2**16), NUMBER] = 8
    """G: responses per prompt; the advantage is relative to this group."""
    temperature: Temperature = 1.0
    """Sampling temperature. π and μ are both the distributions at this temperature."""
    max_new_tokens: FedTokens = 64
    """A response that reaches this length is cut and counted as truncated."""
    stop: tuple[str, ...] = ()
    """Strings of a single token that end a response, beside the model's own end of sequence."""
    strip_special: bool = False
    """Verifiers get responses without special tokens such as `<think>`; off: without end tokens and padding alone."""


class MiniRL(Section):
    """MiniRL, eq. 7 of arXiv 2512.01374, with the switches of the paper's arms."""

    name: Literal["minirl"] = "minirl"
    clip_low: PositiveFloat = 0.2
    """ε_low: with Â<0 a token is masked where π_θ/π_old < 1−ε_low."""
    clip_high: PositiveFloat = 0.27
    """ε_high: with Â>0 a token is masked where π_θ/π_old > 1+ε_high."""
    clip: bool = True
    """Off: no token is masked (the paper's arms without clipping)."""
    importance_sampling: bool = True
    """Off: the weight π_θ/μ_old becomes π_θ/π_old, without the train-inference correction."""
    weight_cap: Bound = 5.0
    """The importance weight is truncated from above here (TIS); `inf` leaves it."""
    length_norm: bool = False
    """On: 1/|y| before the sum over tokens (the paper's ablation)."""


class MinPRO(MiniRL):
    """MinPRO, arXiv 2601.22718: MiniRL with the weight of a token times the lowest before it."""

    name: Literal["minpro"] = "minpro"  # pyright: ignore[reportIncompatibleVariableOverride]


class Reinforce(Section):
    """REINFORCE with a baseline: no weight and no clip."""

    name: Literal["reinforce"] = "reinforce"


class PrefixIS(Section):
    """The prefix product of the ratios as the weight; no clip."""

    name: Literal["prefix_is"] = "prefix_is"
    weight_cap: Bound = None
    """The prefix product is truncated from above here."""


class GRPO(Section):
    """GRPO, Appendix A of arXiv 2512.01374."""

    name: Literal["grpo"] = "grpo"
    clip_low: PositiveFloat = 0.2
    """ε_low of the clipped ratio."""
    clip_high: PositiveFloat = 0.27
    """ε_high of the clipped ratio."""


class DrGRPO(Section):
    """Dr. GRPO, arXiv 2503.20783: GRPO without 1/|y| and without the standard deviation."""

    name: Literal["dr_grpo"] = "dr_grpo"
    clip_low: PositiveFloat = 0.2
    """ε_low of the clipped ratio."""
    clip_high: PositiveFloat = 0.2
    """ε_high of the clipped ratio."""


class DAPO(Section):
    """DAPO, arXiv 2503.14476: GRPO with a wider upper clip and the mean over a group's tokens."""

    name: Literal["dapo"] = "dapo"
    clip_low: PositiveFloat = 0.2
    """ε_low of the clipped ratio."""
    clip_high: PositiveFloat = 0.28
    """ε_high of the clipped ratio."""
    token_mean: Literal["group", "batch"] = "group"
    """The mean over tokens is one of each group, then over groups; or one of the whole mini-batch, as in verl, TRL."""


class CISPO(Section):
    """CISPO, Appendix A of arXiv 2512.01374."""

    name: Literal["cispo"] = "cispo"
    clip_low: PositiveFloat = 0.2
    """ε_low of the clipped, gradient-free weight."""
    clip_high: PositiveFloat = 0.27
    """ε_high of the clipped, gradient-free weight."""


class GSPO(Section):
    """GSPO, arXiv 2507.18071: the clip of PPO on the geometric mean of a response's ratios."""

    name: Literal["gspo"] = "gspo"
    clip_low: PositiveFloat = 3e-4
    """ε_low of the clipped ratio."""
    clip_high: PositiveFloat = 4e-4
    """ε_high of the clipped ratio."""


class OPSM(Section):
    """Off-policy sequence masking of DeepSeek-V3.2, eq. 8 and 9 of arXiv 2512.02556, beside the clip of GRPO."""

    name: Literal["opsm"] = "opsm"
    clip_low: PositiveFloat = 0.2
    """ε_low of the clipped ratio."""
    clip_high: PositiveFloat = 0.27
    """ε_high of the clipped ratio."""
    threshold: PositiveFloat = 0.1
    """δ, nats per token: with Â<0, a response whose mean of log μ_old/π_θ is above it is masked."""


class DPPOTV(Section):
    """DPPO, arXiv 2602.04879, with binary total variation from the rollout's policy as its trust region."""

    name: Literal["dppo_tv"] = "dppo_tv"
    threshold: PositiveFloat = 0.15
    """δ: a token that lies farther out, and would go on, is masked."""


class DPPOKL(Section):
    """DPPO, arXiv 2602.04879, with binary KL from the rollout's policy as its trust region."""

    name: Literal["dppo_kl"] = "dppo_kl"
    threshold: PositiveFloat = 0.05
    """δ, in nats."""


class VESPO(Section):
    """VESPO, arXiv 2602.10693: W^{c1} e^{c2(1−W)} of the response's product W of ratios."""

    name: Literal["vespo"] = "vespo"
    rise_positive: PositiveFloat = 2.0
    """c1 for Â > 0."""
    fall_positive: PositiveFloat = 3.0
    """c2 for Â > 0."""
    rise_negative: PositiveFloat = 3.0
    """c1 for Â < 0."""
    fall_negative: PositiveFloat = 2.0
    """c2 for Â < 0."""


class SAPO(Section):
    """SAPO, arXiv 2511.20347: a sigmoid gate instead of the clip."""

    name: Literal["sapo"] = "sapo"
    temperature_positive: PositiveFloat = 1.0
    """τ for Â > 0."""
    temperature_negative: PositiveFloat = 1.05
    """τ for Â < 0."""


class Composed(Section):
    """Your own objective, from the parts; by default MiniRL."""

    name: Literal["composed"] = "composed"
    ratio: Literal["product", "mismatch", "staleness", "none"] = "product"
    """π_θ/μ_old, π_old/μ_old (times π_θ/π_old per token), π_θ/π_old, or 1."""
    level: Literal["token", "prefix", "lowest_prefix", "sequence", "geometric"] = "token"
    """Over which tokens of the response the ratio is taken."""
    outside: Literal["truncate", "mask"] = "truncate"
    """A weight above the cap becomes the cap; or one outside [floor, cap] becomes 0."""
    weight_floor: Weight = 0.0
    """Lower end of the band; for `mask` only."""
    weight_cap: Bound = 5.0
    """Upper end; `inf` is none."""
    trust: Trust = "clip"
    """Nothing; the clip of π_θ/π_old; that of π_θ/μ_old; DPPO's masks; OPSM of DeepSeek-V3.2, measured from μ_old or
    from π_old, alone or beside a clip; M2PO."""
    clip_low: PositiveFloat = 0.2
    """ε_low of the clips."""
    clip_high: PositiveFloat = 0.27
    """ε_high of the clips."""
    threshold: PositiveFloat = 0.15
    """Of `tv` (source: 0.15), `kl` (0.05), the sequence masks and `second_moment` (0.04)."""
    mean: Literal["responses", "own_tokens", "group_tokens", "batch_tokens"] = "responses"
    """What the sum over tokens is divided by: responses, responses · |y|, groups · Σ|y| of the group, or Σ|y|."""
    normalised: bool = False
    """Divide advantages by the standard deviation of their group."""

    @model_validator(mode="after")
    def _band(self) -> "Composed":
        if self.weight_floor and self.outside != "mask":
            raise ValueError(f'weight_floor = {self.weight_floor} only applies when outside = "mask"')
        if self.weight_cap is not None and self.weight_floor >= self.weight_cap:
            raise ValueError(f"weight_floor = {self.weight_floor} is not below weight_cap = {self.weight_cap}")
        return self


ObjectiveConfig = Annotated[
    Reinforce
    | MiniRL
    | MinPRO
    | PrefixIS
    | GRPO
    | DrGRPO
    | DAPO
    | CISPO
    | GSPO
    | OPSM
    | DPPOTV
    | DPPOKL
    | VESPO
    | SAPO
    | Composed,
    Field(discriminator="name"),
]


class Advantage(Section):
    """How rewards become advantages, and which responses count."""

    leave_one_out: bool = False
    """The baseline of a response is the mean over the others of its group (RLOO, arXiv 2402.14740), not over all."""
    epsilon: Weight = 0.0
    """Added to the standard deviation where the objective divides by it. Groups of equal rewards need none."""
    filter_groups: bool = False
    """Groups of equal rewards, which have no gradient, do not count in the denominators either (DAPO's dynamic
    sampling, arXiv 2503.14476, without its sampling anew)."""
    filter_overlong: bool = False
    """Responses cut at the length limit get Â = 0; they count in their group's baseline and in the denominators (DAPO's
    overlong filtering)."""


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
    batch: Annotated[int, Field(ge=1, le=2**20), NUMBER] = 128
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
    path: Place
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
    prompts: Annotated[int, Field(ge=1, le=2**20), NUMBER] = 256
    """Held-out prompts."""
    samples: AtOnce = 1
    """Responses per prompt (the k of avg@k)."""
    temperature: Temperature = 1.0
    """Temperature of the sampled evaluation."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0), NUMBER] = 1.0
    """Nucleus of the sampled evaluation."""
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1), NUMBER] = 0
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


class Recipe(Section):
    """Everything that a run depends on."""

    seed: Annotated[int, Field(ge=0, lt=2**63), NUMBER] = 0
    """Seed of the weights, the order of the prompts and the sampling."""
    steps: Count = 100
    """Global steps; 0: the cold start alone."""
    model: Annotated[PretrainedModel | TinyModel, Field(discriminator="kind")]
    """The model that is trained."""
    runtime: Runtime = Runtime()
    """Precision, device and memory of the trained model."""
    task: TaskConfig
    """Where prompts and rewards come from."""
    prompt: Prompt = Prompt()
    """How questions become prompts."""
    verifier: Verifier = Verifier()
    """Limits on the verifier."""
    engine: Annotated[LocalEngine | VLLMEngine, Field(discriminator="kind")] = LocalEngine()
    """What samples."""
    rollout: Rollout = Rollout()
    """What one global step samples."""
    objective: ObjectiveConfig = MiniRL()
    """What is maximised."""
    advantage: Advantage = Advantage()
    """How rewards become advantages."""
    update: Update = Update()
    """How a batch becomes gradient steps."""
    optimizer: Optimizer = Optimizer()
    """AdamW and its schedule."""
    cold_start: ColdStart | None = None
    """Supervised training first, or none."""
    evaluate: Evaluate = Evaluate()
    """Held-out accuracy."""
    rollouts: Rollouts = Rollouts()
    """Which training responses are written down."""
    checkpoints: Checkpoints = Checkpoints()
    """What is kept on disk."""
    trackers: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    """Where metrics go beside `metrics.jsonl`."""

    @field_validator("engine", mode="before")
    @classmethod
    def _embedded_by_default(cls, value: Any) -> Any:
        return {"kind": "local", **value} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _stages_fit(self) -> "Recipe":
        for number, stage in enumerate(self.cold_start.stages if self.cold_start else (), start=1):
            if isinstance(self.task, QuestionsTask) and (other := sorted(stage.task.keys() & QuestionsTask.PAIRS)):
                raise ValueError(
                    f"stage {number} of cold_start changes task.{other[0]}: it would train on held-out pairs"
                )
            try:
                type(self.task).model_validate(self.task.model_dump() | stage.task)
            except ValidationError as error:
                mistakes = "; ".join(_explain(detail, type(self.task)) for detail in error.errors())
                raise ValueError(f"the task of stage {number} of cold_start: {mistakes}") from error
        return self

    @model_validator(mode="after")
    def _sets_fit(self) -> "Recipe":
        names = [other.name for other in self.evaluate.sets]
        if names and not isinstance(self.task, QuestionsTask):
            raise ValueError(
                f'evaluate.sets: the set {names[0]!r} holds question/answer pairs, which only task.kind = "questions" '
                f'can verify; the task is "{self.task.kind}". Leave evaluate.sets out'
            )
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"evaluate.sets: the name {twice[0]!r} occurs twice; give each set its own")
        return self

    @model_validator(mode="after")
    def _divides(self) -> "Recipe":
        prompts, minibatches = self.rollout.prompts, self.update.minibatches
        if prompts % minibatches:
            divisors = [n for n in range(1, prompts + 1) if prompts % n == 0]
            raise ValueError(
                f"update.minibatches = {minibatches} does not divide rollout.prompts = {prompts}; use one of {divisors}"
            )
        return self


def load(path: Path) -> Recipe:
    """Read a recipe: TOML as written by people, or the resolved JSON that a run directory keeps.

    Raises:
        RecipeError: the file is missing or malformed, or a field is unknown, mistyped or out of range.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}") from error
    try:
        tree = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{path} is not valid {path.suffix[1:].upper() or 'TOML'}: {error}") from error
    if path.suffix == ".json" and isinstance(tree, dict):
        tree.pop(SEEN, None)
        translate_recipe(tree)
    recipe = resolve(tree, source=str(path))
    if path.suffix == ".json" or recipe.verifier.folder is not None or not _has_own_reward(recipe):
        return recipe  # a run directory's recipe keeps the folder of the recipe that the run began with
    verifier = recipe.verifier.model_copy(update={"folder": str(path.absolute().parent)})
    return recipe.model_copy(update={"verifier": verifier})


def _has_own_reward(recipe: Recipe) -> bool:
    return isinstance(recipe.task, QuestionsTask) and recipe.task.reward != "math_verify"


def resolve(tree: Mapping[str, Any], *, source: str) -> Recipe:
    """Validate a tree of plain values.

    Raises:
        RecipeError: one line per mistake, each with the field, what was found, and what is near it.
    """
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        lines = [f"  {_explain(detail, Recipe)}" for detail in error.errors()]
        raise RecipeError("\n".join([f"{source}: {len(lines)} mistake(s) in the recipe", *lines])) from error


def _explain(detail: Mapping[str, Any], root: type[Section]) -> str:
    """One validation error of `root` as `field: what is wrong (found …)`, with a suggestion for a misspelt key."""
    unknown = detail["type"] == "extra_forbidden"  # its last part is what the writer wrote, whatever it is called
    *above, last = detail["loc"] or ("recipe",)
    place = [str(part) for part in above if part not in _TAGS] + [str(last)] * (unknown or last not in _TAGS)
    field = ".".join(place)
    if unknown and (new := new_field(field)):
        return f"{field}: unknown key; it is now called `{new}`"
    if unknown:
        near = difflib.get_close_matches(str(last), _section_at(root, above).model_fields, n=1) or _elsewhere(str(last))
        hint = f"; did you mean `{near[0]}`?" if near else ""
        return f"{field}: unknown key{hint}"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] in ("missing", "value_error"):
        return f"{field}: {message}"
    return f"{field}: {message} (found {_short(detail['input'])})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:90]}… ({len(text)} characters)"


def _section_at(root: type[Section], place: Sequence[str | int]) -> type[Section]:
    """The section that an error's location names, such as `("task", "questions")`."""
    choices = [root]
    for part in place:
        if part in _TAGS:
            choices = [c for c in choices if part in (_default(c, "kind"), _default(c, "name"))] or choices
        elif len(choices) == 1 and part in choices[0].model_fields:
            choices = _sections_of(choices[0].model_fields[str(part)].annotation) or choices
    return choices[0]


def _sections_of(annotation: Any) -> list[type[Section]]:
    """The sections that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections_of(part)]


def _default(section: type[Section], field: str) -> Any:
    return section.model_fields[field].default if field in section.model_fields else None


def _elsewhere(key: str) -> list[str]:
    """The one other section that has a field of this very name, as `section.field`."""
    found = [
        f"{name}.{key}"
        for name, field in Recipe.model_fields.items()
        if any(key in section.model_fields for section in _sections_of(field.annotation))
    ]
    return found if len(found) == 1 else []


VARIANTS: dict[tuple[str, str], list[str]] = {
    (name, tag): [_default(section, tag) for section in _sections_of(field.annotation)]
    for name, field in Recipe.model_fields.items()
    for tag in ("kind", "name")
    if any(tag in section.model_fields for section in _sections_of(field.annotation))
}
"""The sections that come in kinds: (section, field that says which) → the kinds there are."""
_TAGS = {kind for kinds in VARIANTS.values() for kind in kinds}
"""pydantic names the variant in an error's location; the recipe's writer did not."""
