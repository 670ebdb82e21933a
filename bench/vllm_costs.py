"""What vLLM costs a step beside its sampling: the hand-over of weights, and the collecting of routes.

The hand-over is held against whole steps of the recipe demo-vllm, the routes against the sampling of 256 sequences.
"""

import contextlib
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import torch

from _measure import MODEL, show, sized
from steadyrl.engine.base import generate
from steadyrl.engine.vllm import VLLMEngine, answers
from steadyrl.guard import ModelGuard
from steadyrl.loop import global_step
from steadyrl.model.loading import build_tiny
from steadyrl.parts import prepared_parts
from steadyrl.recipe import shipped
from steadyrl.run.directory import Run
from steadyrl.types import Sampling

PROMPTS, RESPONSES, NEW_TOKENS, ROUNDS = sized(16, 4), sized(16, 2), sized(64, 8), sized(5, 1)
STEPS = sized(20, 2)


def steps() -> dict[str, float]:
    """Median over the steps of the recipe's first, without a cold start: seconds, and the hand-over's share."""
    recipe = shipped.read("demo-vllm")
    with prepared_parts(recipe) as parts, tempfile.TemporaryDirectory() as folder:
        run, rollouter, trainer = Run.create(Path(folder) / "run", recipe, inputs={}), parts.rollouter, parts.trainer
        guard = ModelGuard(trainer=trainer, rollouter=rollouter, run=run, prompts=recipe.rollout.prompts)
        rows = [global_step(recipe, rollouter, trainer, guard)[0] for _ in range(STEPS + 1)][1:]
        run.close()
    return {
        "seconds of a step": statistics.median(float(row["seconds/step"]) for row in rows),
        "seconds of the hand-over": statistics.median(float(row["seconds/sync"]) for row in rows),
        "share": statistics.median(float(row["seconds/sync"]) / float(row["seconds/step"]) for row in rows),
    }


@contextlib.contextmanager
def timed(module: object, name: str, spent: list[float]) -> Iterator[None]:
    """Add up the seconds that calls of a function or method take."""
    original = getattr(module, name)

    def watched(*args, **kwargs):
        start = time.perf_counter()
        result = original(*args, **kwargs)
        spent[-1] += time.perf_counter() - start
        return result

    with patch.object(module, name, watched):
        yield


def routes() -> dict[str, float]:
    """Median seconds of sampling 256 sequences, and the share of what vLLM and this project do for their routes."""
    from vllm.model_executor.layers.fused_moe.routed_experts_capturer import RoutedExpertsCapturer, RoutedExpertsManager

    held = build_tiny(
        family="qwen3_moe", alphabet="0123456789+-=;>abcdefghijklmnop", config=MODEL, seed=0, dtype=torch.float32
    )
    engine = VLLMEngine(held.model, end_tokens=set())
    rng = random.Random(0)
    prompts = [[rng.randrange(3, 30) for _ in range(rng.randint(24, 48))] for _ in range(PROMPTS)]
    sampling = Sampling(temperature=1.0, max_new_tokens=NEW_TOKENS)
    whole: list[float] = []
    spent: list[float] = []
    with (
        timed(RoutedExpertsCapturer, "capture", spent),
        timed(RoutedExpertsManager, "store_batch", spent),
        timed(RoutedExpertsManager, "get", spent),
        timed(answers, "read_routes", spent),
    ):
        for number in range(ROUNDS + 1):
            spent.append(0.0)
            start = time.perf_counter()
            generate(engine, prompts, responses=RESPONSES, sampling=sampling, seed=number)
            whole.append(time.perf_counter() - start)
    return {
        "seconds of sampling": statistics.median(whole[1:]),
        "seconds for routes": statistics.median(spent[1:]),
        "share": statistics.median(a / b for a, b in zip(spent[1:], whole[1:], strict=True)),
        "tokens per second": PROMPTS * RESPONSES * NEW_TOKENS / statistics.median(whole[1:]),
    }


def main() -> None:
    """Print both tables."""
    if find_spec("vllm") is None:
        print("vLLM is not installed, so nothing was measured; `make vllm` installs it")
        return
    handing, collecting = steps(), routes()
    show(f"weights: demo-vllm, {STEPS} steps", [handing], {"sync_share": handing["share"]})
    figures = {"route_share": collecting["share"], "tokens_per_second": collecting["tokens per second"]}
    show(f"routes: {PROMPTS} prompts × {RESPONSES} responses of {NEW_TOKENS} tokens, FP32", [collecting], figures)


if __name__ == "__main__":
    main()
