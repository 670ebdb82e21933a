"""One global step of SteadyRL against one of TRL's GRPOTrainer: same model, prompts, completions and lengths.

Both sample, reward, and take one gradient step on the CPU in FP32. Each lives in a process of its own, which sleeps
while the other takes its step, so the two alternate and neither works in memory that the other has left behind.
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

from _measure import MODEL, QUICK, arguments, median_ratio, peak_gib, show, sized
from steadyrl.build import build_policy
from steadyrl.guard import ModelGuard
from steadyrl.loop import global_step
from steadyrl.parts import prepared_parts
from steadyrl.recipe import resolve
from steadyrl.run.directory import Run

STEPS, MARK = sized(6, 1), "step: "
PROMPTS, RESPONSES, NEW_TOKENS = sized(16, 2), sized(16, 4), sized(96, 16)
RECIPE: dict[str, Any] = {
    "steps": 1000,
    "model": {
        "kind": "tiny",
        "alphabet": "0123456789+-=;>abcdefghijklmnopqrstuvwxyz",
        "config": MODEL,
    },
    "task": {"kind": "chains", "min_terms": 10, "max_terms": 20},
    "rollout": {"prompts": PROMPTS, "responses": RESPONSES, "max_new_tokens": NEW_TOKENS},
    "optimizer": {"learning_rate": 1e-6},
}


def even(completions: list[str], **_: Any) -> list[float]:
    """A reward that random text earns about half the time, so that advantages are not zero: an even length."""
    return [float(len(text) % 2 == 0) for text in completions]


@contextmanager
def our_steps(folder: Path) -> Iterator[Callable[[], tuple[dict[str, Any], list[Any]]]]:
    """A function that takes the next global step of a run."""
    code = folder / "even.py"
    code.write_text("def reward(prompt, completion):\n    return float(len(completion) % 2 == 0)\n")
    pairs = [{"question": q, "answer": "0"} for q in questions(4096 + 64)]
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    task = {"kind": "questions", "path": str(data), "reward": f"{code}:reward", "held_out": 64}
    recipe = resolve({**RECIPE, "task": task, "evaluate": {"prompts": 64}}, source="vs_trl")
    with prepared_parts(recipe) as parts:
        run, rollouter, trainer = Run.create(folder / "run", recipe, inputs={}), parts.rollouter, parts.trainer
        guard = ModelGuard(trainer=trainer, rollouter=rollouter, run=run, prompts=recipe.rollout.prompts)
        yield lambda: global_step(recipe, rollouter, trainer, guard)


def questions(count: int) -> list[str]:
    """Distinct prompts of 20 to 40 characters."""
    from steadyrl.tasks.build import build_task

    task = build_task("chains", seed=0, parameters={**RECIPE["task"], "teacher_noise": 0.0})
    return [task.example("train", index).question for index in range(count)]


def trl_trainer(folder: Path, callback: TrainerCallback | None, steps: int) -> GRPOTrainer:
    """TRL's trainer on the same model, with its own defaults where nothing has to match."""
    policy = build_policy(resolve(RECIPE, source="vs_trl"))
    policy.model.set_attn_implementation("sdpa")  # as transformers comes
    config = GRPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=PROMPTS * RESPONSES,
        num_generations=RESPONSES,
        max_completion_length=NEW_TOKENS,
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


class OnDemand(TrainerCallback):
    """TRL takes a step whenever it is told to, and says how long it took."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait for the word; then TRL samples, rewards and updates."""
        sys.stdin.readline()
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """TRL has updated."""
        tell(seconds=time.perf_counter() - self.started)


def tell(**facts: float) -> None:
    """One line to the parent."""
    print(f"{MARK}{json.dumps({**facts, 'gib': peak_gib()})}", flush=True)


def serve(which: str) -> None:
    """Take a step for every line on standard input."""
    with tempfile.TemporaryDirectory() as name:
        if which == "TRL":
            trainer = trl_trainer(Path(name), OnDemand(), STEPS + 1)
            trainer.train()
            print(
                f"{MARK}{json.dumps({'tokens': trainer.state.log_history[-1]['completions/mean_length']})}", flush=True
            )
        else:
            with our_steps(Path(name)) as our_step:
                lengths = []
                for _ in range(STEPS + 1):
                    sys.stdin.readline()
                    start = time.perf_counter()
                    metrics, _ = our_step()
                    lengths.append(metrics["response/length"])
                    tell(seconds=time.perf_counter() - start)
                tell(tokens=statistics.mean(lengths))


class Side:
    """One of the two, in a process of its own that sleeps while the other works."""

    def __init__(self, name: str):
        self.name, pipe = name, subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, __file__, name, *QUICK], stdin=pipe, stdout=pipe, text=True, bufsize=1
        )

    def step(self) -> dict[str, float]:
        """Let it take a step."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        return self.answer()

    def answer(self) -> dict[str, float]:
        """What it says next."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        raise RuntimeError(f"{self.name} ended with status {self.process.wait()}")


def main() -> None:
    """Print the table."""
    sides = [Side("SteadyRL"), Side("TRL")]
    rounds = [[side.step() for side in sides] for _ in range(STEPS + 1)][1:]  # the first warms up
    rows = [
        {
            "": side.name,
            "s/step": statistics.median(one[n]["seconds"] for one in rounds),
            "GiB": rounds[-1][n]["gib"],
            "tokens a response": side.answer()["tokens"],
        }
        for n, side in enumerate(sides)
    ]
    ratio = median_ratio(*([one[n]["seconds"] for one in rounds] for n in range(2)))
    figures = {"ratio": ratio, "memory_ratio": rounds[-1][0]["gib"] / rounds[-1][1]["gib"]}
    show(
        f"one step: {PROMPTS} prompts × {RESPONSES} completions, 1.8 M parameters, FP32; median of {STEPS} steps",
        rows,
        figures,
    )


if __name__ == "__main__":
    if arguments():
        serve(*arguments())
    else:
        main()
