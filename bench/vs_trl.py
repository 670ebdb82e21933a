"""One global step of SteadyRL against one of TRL's GRPOTrainer: same model, prompts, completions and lengths.

Both sample, score, and take one gradient step on the CPU in FP32. TRL trains; whenever it has taken a step, ours takes
one, so the two alternate in one process. Peak memory comes from a process for each.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from _measure import median_ratio, peak_gib, show
from steadyrl.config import resolve
from steadyrl.loop import Progress, global_step
from steadyrl.run import Run
from steadyrl.session import Session, build_policy, open_session

STEPS = 6
RECIPE: dict[str, Any] = {
    "steps": 1000,
    "model": {
        "kind": "tiny",
        "alphabet": "0123456789+-=;>abcdefghijklmnopqrstuvwxyz",
        "config": {
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "num_experts": 16,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "intermediate_size": 64,
            "norm_topk_prob": True,
            "max_position_embeddings": 512,
        },
    },
    "task": {"kind": "chains", "min_terms": 10, "max_terms": 20},
    "rollout": {"prompts": 16, "responses": 16, "max_new_tokens": 96},
    "optimizer": {"learning_rate": 1e-6},
}


def even(completions: list[str], **_: Any) -> list[float]:
    """A reward that random text earns about half the time, so that advantages are not zero: an even length."""
    return [float(len(text) % 2 == 0) for text in completions]


@contextmanager
def our_session(folder: Path) -> Iterator[tuple[Session, Callable[[], dict[str, Any]]]]:
    """A session and a function that takes its next global step."""
    score = folder / "even.py"
    score.write_text("def score(prompt, completion):\n    return float(len(completion) % 2 == 0)\n")
    pairs = [{"question": q, "answer": "0"} for q in questions(4096 + 64)]
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    task = {"kind": "questions", "path": str(data), "score": f"{score}:score", "held_out": 64}
    recipe = resolve({**RECIPE, "task": task, "evaluate": {"prompts": 64}}, source="vs_trl")
    with open_session(recipe) as session:
        run, progress = Run.create(folder / "run", recipe), Progress()
        yield session, lambda: global_step(session, run, progress)


def questions(count: int) -> list[str]:
    """Distinct prompts of 20 to 40 characters."""
    from steadyrl.tasks.build import build_task

    task = build_task("chains", seed=0, parameters={**RECIPE["task"], "teacher_noise": 0.0})
    return [task.example("train", index).question for index in range(count)]


def trl_trainer(folder: Path, callback: TrainerCallback | None, steps: int) -> GRPOTrainer:
    """TRL's trainer on the same model, with its own defaults where nothing has to match."""
    policy = build_policy(resolve(RECIPE, source="vs_trl"))
    config = GRPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=256,
        num_generations=16,
        max_completion_length=96,
        max_steps=steps,
        learning_rate=1e-6,
        temperature=1.0,
        top_k=0,
        beta=0.0,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    return GRPOTrainer(
        model=policy.model,
        processing_class=policy.tokenizer,
        reward_funcs=even,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": questions(4096)}),
        callbacks=[callback] if callback else None,
    )


class Alternating(TrainerCallback):
    """Time TRL's step; then take and time one of ours."""

    def __init__(self, our_step: Callable[[], dict[str, Any]]):
        self.our_step, self.theirs, self.ours, self.lengths = our_step, [], [], []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """TRL starts to sample."""
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """TRL has updated; now ours."""
        self.theirs.append(time.perf_counter() - self.started)
        start = time.perf_counter()
        metrics = self.our_step()
        self.ours.append(time.perf_counter() - start)
        self.lengths.append(metrics["response/length"])


def peak(which: str) -> float:
    """GiB at the peak of two steps in a fresh process."""
    done = subprocess.run([sys.executable, __file__, which], capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def measure_peak(which: str) -> None:
    """Two steps of one of the two, and this process's peak memory."""
    with tempfile.TemporaryDirectory() as name:
        if which == "trl":
            trl_trainer(Path(name), None, 2).train()
        else:
            with our_session(Path(name)) as (_, our_step):
                our_step()
                our_step()
    print(peak_gib())


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as name, our_session(Path(name)) as (_, our_step):
        callback = Alternating(our_step)
        trainer = trl_trainer(Path(name), callback, STEPS + 1)
        trainer.train()
        their_length = trainer.state.log_history[-1]["completions/mean_length"]
    ours, theirs = callback.ours[1:], callback.theirs[1:]
    ratio = median_ratio(ours, theirs)
    our_peak, their_peak = peak("ours"), peak("trl")
    rows = [
        {
            "": "SteadyRL",
            "s/step": statistics.median(ours),
            "GiB": our_peak,
            "tokens": statistics.mean(callback.lengths[1:]),
        },
        {"": "TRL", "s/step": statistics.median(theirs), "GiB": their_peak, "tokens": their_length},
    ]
    figures = {"ratio": ratio, "memory_ratio": our_peak / their_peak}
    show(f"one step: 16 prompts × 16 completions, 1.8 M parameters, FP32; median of {STEPS} steps", rows, figures)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        measure_peak(sys.argv[1])
    else:
        main()
