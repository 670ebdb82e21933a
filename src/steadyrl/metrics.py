"""What a run measures, and where the numbers go.

`METRICS` names every number of a global step, once; `docs/metrics.md` is printed from it (``python -m
steadyrl.metrics``). The JSON Lines files of the run directory are the truth; TensorBoard, trackio and W&B are
optional copies.
"""

import importlib
import json
import math
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from steadyrl.errors import UserError

Value = float | int | str | bool | None
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a run: its name in the files, its unit, and its meaning."""

    name: str
    unit: str
    doc: str


_RATIO = (
    ("k1", "nats", "Mean of −log ρ: estimates a KL divergence; may come out negative"),
    ("k3", "nats", "Mean of ρ − 1 − log ρ: the same, steadier and never negative"),
    ("k3_margin", "nats", "Half the 95% interval of k3, over responses"),
    ("chi2", "–", "Mean of (ρ − 1)²: estimates the χ² divergence"),
    ("mean", "ratio", "Mean of ρ"),
    ("max", "ratio", "Largest ρ"),
    ("ess", "share", "Effective sample size over token count n: (Σρ)²/(n Σρ²)"),
    ("p01", "ratio", "Quantile 0.01 of ρ"),
    ("p50", "ratio", "Median of ρ"),
    ("p99", "ratio", "Quantile 0.99 of ρ"),
    ("tail_2", "share", "Tokens with ρ outside [1/2, 2]"),
    ("tail_5", "share", "Tokens with ρ outside [1/5, 5]"),
)
"""What is said of each factor of eq. 5 and of their product: `algo.ledger.describe`."""


def _factor(prefix: str, ratio: str, over: str) -> tuple[Metric, ...]:
    return tuple(Metric(f"{prefix}/{name}", unit, f"{doc}; ρ = {ratio}, {over}.") for name, unit, doc in _RATIO)


METRICS: tuple[Metric, ...] = (
    Metric("step", "steps", "Global steps taken, this one included: the first is 1."),
    Metric("policy_version", "versions", "Version of the weights that sampled this step."),
    Metric("reward/mean", "reward", "Mean reward of the step's responses."),
    Metric("reward/accuracy", "share", "Share of responses with reward ≥ 1."),
    Metric("reward/failures", "responses", "Responses whose scoring raised, hung or returned NaN."),
    Metric("reward/uniform_groups", "share", "Share of groups whose rewards are all equal: no gradient."),
    Metric("response/length", "tokens", "Mean length of a response."),
    Metric("response/truncated", "share", "Share of responses cut at the length limit."),
    Metric("policy/entropy", "nats", "E_{y<t∼μ}[−Σ_w π(w) log π(w)] over the whole vocabulary, π = π_old."),
    *_factor("mismatch", "π_old/μ", "over all tokens of the step; under R3, π_old is the replayed one"),
    Metric("mismatch/abs_mean", "nats", "Mean of |log π_old − log μ|."),
    Metric("mismatch/abs_max", "nats", "Largest |log π_old − log μ|."),
    Metric("mismatch/k1_margin", "nats", "Half the 95% interval of `mismatch/k1`, over responses."),
    *_factor("staleness", "π_θ/π_old", "over the step's updates"),
    *_factor("weight", "π_θ/μ_old", "over the step's updates, before truncation"),
    Metric(
        "weight/truncated",
        "share",
        "Share of tokens whose weight is truncated, or set to 0 outside its band.",
    ),
    Metric(
        "surrogate/delta",
        "reward",
        "Δ of J(π) − J(μ) = E_μ[R Σ(r−1)] − Δ, r = π_θ/μ_old: how far the token level misses the sequence level, in "
        "value. Mean over the responses in the step's updates, each with its Â in the place of R.",
    ),
    Metric("surrogate/delta_low", "reward", "Lower end of the 95% interval of Δ."),
    Metric("surrogate/delta_high", "reward", "Upper end of the 95% interval of Δ."),
    Metric("surrogate/delta_bound", "reward", "Mean of |Â| Σ|r−1||1 − Π r of the tokens behind|: |Δ| at most."),
    Metric("surrogate/value_gap", "ratio", "Mean of |Π r − (1 + Σ(r−1))| over the same responses."),
    Metric(
        "clip/low",
        "share",
        "Share of tokens with Â < 0 that the objective's trust region masks; MiniRL's is π_θ/π_old ≥ 1 − ε_low there.",
    ),
    Metric("clip/high", "share", "Share of tokens with Â > 0 that it masks; MiniRL's is π_θ/π_old ≤ 1 + ε_high there."),
    Metric(
        "routes/disagreement",
        "share",
        "Share of (computed position, layer) expert sets, prompts included, that differ between the rollout engine's "
        "and the trainer's own choice; under R3 the choice it would have made above replayed layers. Absent for dense "
        "models.",
    ),
    Metric("routes/layer_<n>", "share", "The same of the n-th mixture-of-experts layer, counted from 0."),
    Metric(
        "routes/margin",
        "score",
        "Where the sets differ, mean gap between the k-th and the k+1-th score of the trainer's router.",
    ),
    Metric(
        "routes/unrouted",
        "share",
        "Share of fed positions that the engine returned no experts for; the trainer routes them by itself.",
    ),
    Metric(
        "replay/k3_natural",
        "nats",
        "D_KL[μ‖π_old] by k3 with the trainer's own experts, on the responses to one prompt, another at every step.",
    ),
    Metric("replay/k3_replayed", "nats", "The same with the rollout's experts."),
    Metric("replay/removed", "share", "1 − k3_replayed/k3_natural: what replay removes; noisy, can be negative."),
    Metric("update/objective", "–", "Value of the maximised surrogate, mean over the step's updates."),
    Metric("update/grad_norm", "norm", "Gradient norm before clipping, mean over the step's updates."),
    Metric("update/skipped", "updates", "Updates skipped because loss or gradient was not finite."),
    Metric(
        "update/moved",
        "share",
        "Weights that the step's updates changed, of those with a gradient that is not zero; at most 65,536 of a "
        "tensor are looked at. About 1 in float32; low where bfloat16 rounds small updates away.",
    ),
    Metric("update/learning_rate", "rate", "Learning rate of the step's last update."),
    Metric("update/padding", "share", "Share of padding among the cells that attention computes."),
    Metric(
        "update/computed",
        "ratio",
        "Positions computed for each fed token: below 1 where responses share their prompt.",
    ),
    Metric("seconds/sampling", "s", "Sampling the responses."),
    Metric("seconds/rewards", "s", "Scoring the responses against the task."),
    Metric(
        "seconds/scoring",
        "s",
        "The trainer's forwards with θ_old, log π_old and the routes, but for the first mini-batch's, which is its "
        "update's as well; and those that measure what replay removes.",
    ),
    Metric("seconds/update", "s", "The N gradient updates."),
    Metric("seconds/sync", "s", "Handing the new weights to the engine."),
    Metric("seconds/step", "s", "The whole step, evaluations and checkpoints left out."),
    Metric("throughput/tokens_per_second", "tokens/s", "Sampled response tokens over `seconds/step`."),
    Metric("memory/peak_gib", "GiB", "Peak memory of the process, or of its GPU."),
)

LEDGER_FIELDS: tuple[Metric, ...] = (
    Metric("step", "steps", "Global steps taken, this one included."),
    Metric(
        "factor",
        "–",
        "ρ: `discrepancy` is π_old/μ_old, over all tokens of the step; `staleness` is π_θ/π_old and `product` is "
        "π_θ/μ_old, both before truncation, over the tokens in the step's updates.",
    ),
    Metric(
        "split",
        "–",
        "What the tokens are sorted by: `all`, not at all, with the numbers that `metrics.jsonl` calls mismatch, "
        "staleness and weight; `position` in the response; `advantage`, its sign; `version`, the gradient steps "
        "between the weights that sampled a token and those that score it here; `routes`, of mixtures of experts: "
        "whether both engines chose the same experts in every layer.",
    ),
    Metric(
        "bucket",
        "–",
        "`all`; where a range of positions or versions begins, up to the next: 0, 16, 64, 256, 1024, 4096, 16384 and "
        "0, 1, 2, 4, 8; `negative`, `zero`, `positive`; `agreed`, `differed`, `unrouted`. Empty ones have no line.",
    ),
    Metric("tokens", "tokens", "Tokens in the bucket."),
    *(Metric(name, unit, f"{doc}.") for name, unit, doc in _RATIO),
    Metric("k1_margin", "nats", "Half the 95% interval of k1, over responses."),
    Metric("abs_mean", "nats", "Mean of |log ρ|."),
    Metric("abs_max", "nats", "Largest |log ρ|."),
)

EVAL_FIELDS: tuple[Metric, ...] = (
    Metric("step", "steps", "Global steps taken before the evaluation; 0 is before the first."),
    Metric("mode", "–", "`sampled` (the recipe's temperature, top-p and top-k) or `greedy`."),
    Metric("precision", "–", "Precision of the engine that answered: `native`, `fp8`, …"),
    Metric("accuracy", "share", "Mean over prompts and samples of reward ≥ 1, on held-out prompts."),
    Metric("low", "share", "Lower end of the 95% interval of the accuracy."),
    Metric("high", "share", "Upper end of the 95% interval of the accuracy."),
    Metric("prompts", "prompts", "Held-out prompts."),
    Metric("samples", "responses", "Responses per prompt."),
    Metric("failures", "responses", "Responses whose scoring raised, hung or returned NaN; they count as wrong."),
)

COLD_START_FIELDS: tuple[Metric, ...] = (
    Metric("step", "steps", "Gradient steps of the cold start taken."),
    Metric("loss", "nats", "Mean −log π per token of the worked solutions."),
    Metric("accuracy", "share", "Sampled accuracy on held-out prompts; absent where it was not looked at."),
)

FAILURE_FIELDS: tuple[Metric, ...] = (
    Metric("step", "steps", "Global step whose responses were scored."),
    Metric("reason", "–", "Why scoring failed, such as `raised ValueError: …` or `took longer than 10 s`."),
    Metric("responses", "responses", "How many responses of the step it failed for in this way."),
)

SAMPLE_FIELDS: tuple[Metric, ...] = (
    Metric("step", "steps", "Global steps taken before the evaluation that sampled it."),
    Metric("question", "–", "What the model was asked."),
    Metric("answer", "–", "The reference answer."),
    Metric("completion", "–", "The model's response."),
    Metric("reward", "reward", "Its reward."),
)


class MetricsLog:
    """One JSON Lines file of a run, such as `metrics.jsonl`; unless told otherwise, `log` returns once the disk has it.

    JSON has no NaN and no infinity: such values are written as null. A last line that a kill left half
    written is dropped when the file is opened, so that the next line starts clean.
    """

    def __init__(self, path: Path, fields: Iterable[Metric] = METRICS) -> None:
        """Open `path`, or create it; `fields` are the names it may hold."""
        self._path = path
        self._names = frozenset(field.name for field in fields)
        path.touch()
        if not path.read_bytes().endswith(b"\n"):
            self._rewrite(read_jsonl(path))

    def log(self, step: int, *rows: Mapping[str, Value], sync: bool = True) -> None:
        """Append a line for each row: `step`, then its numbers; without `sync`, the disk has them after `sync()`.

        Raises:
            ValueError: a name is not among the file's fields.
            TypeError: a value is not a plain number, string, bool or None.
        """
        names = {name for row in rows for name in row}
        if unknown := sorted(n for n in names if not {n, re.sub(r"\d+$", "<n>", n)} & self._names):
            raise ValueError(
                f"{self._path.name}: unknown {', '.join(unknown)}; document it in steadyrl/metrics.py first"
            )
        lines = "".join(_line({"step": step, **row}) for row in rows)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(lines)
        if sync:
            self.sync()

    def sync(self) -> None:
        """Wait until the disk has every line."""
        with self._path.open("a") as file:
            os.fsync(file.fileno())

    def truncate(self, step: int) -> None:
        """Drop every line beyond `step`, atomically; a resumed run then writes those steps anew."""
        self._rewrite([row for row in read_jsonl(self._path) if row["step"] <= step])

    def _rewrite(self, rows: Iterable[Row]) -> None:
        write_atomically(self._path, "".join(map(_line, rows)))


class DamagedLog(UserError):
    """A line of a run's files that cannot be read. The message names the file and the line."""


def read_jsonl(path: Path) -> list[Row]:
    """Rows of a JSON Lines file; a last line that a kill cut in mid-write is left out.

    Raises:
        DamagedLog: another line is not a JSON object with a `step`; the message names the file and the line.
    """
    *lines, tail = path.read_bytes().split(b"\n")
    rows = [_row(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]
    try:
        return [*rows, _row(tail, "tail")]
    except DamagedLog:
        return rows


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text`; a reader, or a kill, meets the old file or the new one, never a part."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _row(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DamagedLog(f"{where} is not JSON: {error}; mend or delete that line") from error
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise DamagedLog(f"{where} is not an object with an integer `step`; mend or delete that line")
    return row


def _line(row: Mapping[str, Value]) -> str:
    for name, value in row.items():
        if not isinstance(value, Value):
            raise TypeError(f"{name} is a {type(value).__name__}; log a plain number (a tensor's .item())")
    plain = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}
    return json.dumps(plain, allow_nan=False) + "\n"


class Sink(Protocol):
    """A further place for the numbers of a step."""

    def log(self, step: int, metrics: Mapping[str, Value]) -> None:
        """Copy the finite numbers of a step."""
        ...

    def close(self) -> None:
        """Flush and end."""
        ...


class MissingSink(UserError):
    """A sink was asked for whose package is not installed. The message says how to install it."""


class TensorBoard:
    """Event files in the run directory's `tensorboard` folder."""

    def __init__(self, module: ModuleType, run_dir: Path, config: Mapping[str, Any]) -> None:
        """Open on the first `log`, whose step tells TensorBoard what a resumed run repeats."""
        self._open: Callable[..., Any] = module.SummaryWriter
        self._folder, self._config = run_dir / "tensorboard", config
        self._writer: Any = None

    def log(self, step: int, metrics: Mapping[str, Value]) -> None:
        """Add one scalar per number."""
        if self._writer is None:
            self._writer = self._open(log_dir=str(self._folder), purge_step=step)
            self._writer.add_text("recipe", f"```json\n{json.dumps(self._config, indent=2)}\n```", step)
        for name, value in _numbers(metrics).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()


class Tracker:
    """W&B or trackio, which share one interface; a resumed run continues its own curves.

    One that has gone back to an earlier checkpoint begins new ones (see `forget_curves`): W&B drops what is sent of a
    step that it has.
    """

    def __init__(self, module: ModuleType, run_dir: Path, config: Mapping[str, Any]) -> None:
        """Start, or continue, the run in the project `steadyrl`."""
        name = f"{run_dir.resolve().name}-{_identity(run_dir)}"
        # only W&B keys runs by an id of their own and keeps files of its own in the run directory
        where = {"id": name, "dir": str(run_dir)} if module.__name__ == "wandb" else {}
        self._run = module.init(project="steadyrl", name=name, config=dict(config), resume="allow", **where)

    def log(self, step: int, metrics: Mapping[str, Value]) -> None:
        """Send one row."""
        self._run.log(_numbers(metrics), step=step)

    def close(self) -> None:
        """Wait until everything is stored."""
        self._run.finish()


_SINKS: dict[str, tuple[str, Callable[[ModuleType, Path, Mapping[str, Any]], Sink]]] = {
    "tensorboard": ("torch.utils.tensorboard", TensorBoard),
    "trackio": ("trackio", Tracker),
    "wandb": ("wandb", Tracker),
}


def require_sinks(names: Sequence[str]) -> None:
    """Import the packages of the sinks named, and open nothing.

    Raises:
        MissingSink: one is not installed.
    """
    for name in names:
        _import(name)


def open_sinks(names: Sequence[str], run_dir: Path, config: Mapping[str, Any]) -> list[Sink]:
    """Open the sinks named, importing only their packages; `config` is the resolved recipe as plain values.

    Raises:
        ValueError: a name is no sink.
        MissingSink: its package is not installed.
    """
    # every package is found before the first sink opens, so that a failure leaves none half open
    modules = {name: _import(name) for name in names}
    return [_SINKS[name][1](module, run_dir, config) for name, module in modules.items()]


def _import(name: str) -> ModuleType:
    if name not in _SINKS:
        raise ValueError(f"sinks: {name!r} is not one of {', '.join(_SINKS)}")
    try:
        return importlib.import_module(_SINKS[name][0])
    except ModuleNotFoundError as error:
        raise MissingSink(
            f"sinks: {name!r} needs a package that is not installed ({error.name}): "
            f'pip install "steadyrl[{name}]", or leave it out of `sinks`'
        ) from error


def forget_curves(run_dir: Path) -> None:
    """Let trackers take what follows for another run."""
    (run_dir / "tracker_id.txt").unlink(missing_ok=True)


def _identity(run_dir: Path) -> str:
    """A random name that stays with the run directory: two runs called `demo` are two runs."""
    path = run_dir / "tracker_id.txt"
    if not path.exists():
        write_atomically(path, secrets.token_hex(4))
    return path.read_text(encoding="utf-8")


def _numbers(metrics: Mapping[str, Value]) -> dict[str, float]:
    return {k: float(v) for k, v in metrics.items() if isinstance(v, int | float) and math.isfinite(v)}


_PREFACE = """\
# What a run measures

<!-- Printed by `python -m steadyrl.metrics`; edit src/steadyrl/metrics.py. -->

A run directory holds JSON Lines files: one object per line, each with its `step`. NaN and infinities are
written as `null`. A mean or share runs over the response tokens, or the responses, of the whole step; that of
the updates (`staleness/`, `weight/`, `surrogate/`, `clip/`) over those whose advantage is not 0. Logarithms are
natural. μ is the policy of the engine that samples, π that of the trainer; θ_old are the weights that sampled, θ
the weights now. Both policies are taken at the sampling temperature.
"""


def docs() -> str:
    """The page `docs/metrics.md`."""
    parts = [_PREFACE, "## `metrics.jsonl`: one line per global step\n"]
    for prefix, group in groupby(METRICS, key=lambda metric: metric.name.rpartition("/")[0]):
        parts += [f"### {prefix}\n" * bool(prefix), _table(group)]
    for title, fields in (
        ("`ledger.jsonl`: one line per global step, factor, split and bucket", LEDGER_FIELDS),
        ("`eval.jsonl`: one line per evaluation, mode and precision", EVAL_FIELDS),
        ("`cold_start.jsonl`: one line per gradient step", COLD_START_FIELDS),
        ("`failures.jsonl`: one line per step and reason, where scoring failed", FAILURE_FIELDS),
        ("`samples.jsonl`: a few responses of every evaluation", SAMPLE_FIELDS),
    ):
        parts += [f"## {title}\n", _table(fields)]
    return "\n".join(filter(None, parts))


def _table(metrics: Iterable[Metric]) -> str:
    rows = [(f"`{m.name}`", m.unit, m.doc.replace("|", "\\|")) for m in metrics]
    return "".join(f"| {' | '.join(row)} |\n" for row in [("name", "unit", "meaning"), ("---",) * 3, *rows])


if __name__ == "__main__":
    print(docs(), end="")
