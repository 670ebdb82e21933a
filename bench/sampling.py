"""Tokens per second of the embedded engine, vLLM and `transformers.generate`: same weights, same prompts, no FP8.

vLLM is left out, with a note, where it is not installed. Two workloads: responses that end where the model ends them
(what RL samples), and responses of a fixed length.
"""

import random
import statistics
from functools import partial
from importlib.util import find_spec

import torch

from _measure import MODEL, median_ratio, seconds, show, sized
from steadyrl.engine.base import Engine, generate
from steadyrl.engine.local import LocalEngine
from steadyrl.engine.vllm import VLLMEngine
from steadyrl.model.loading import Policy, build_tiny
from steadyrl.types import Sampling

PROMPTS, RESPONSES, NEW_TOKENS, ROUNDS = sized(32, 4), sized(8, 2), sized(64, 8), sized(5, 1)


def policy() -> Policy:
    """A Qwen3 mixture of experts of 1.8 M parameters with random weights."""
    return build_tiny(
        family="qwen3_moe",
        alphabet="0123456789+-=;>abcdefghijklmnop",
        config=MODEL,
        seed=0,
        dtype=torch.float32,
    )


def compare(held: Policy, ends: set[int], lengths: tuple[int, int], title: str) -> dict[str, float | str]:
    """Alternate the two on one workload."""
    rng = random.Random(0)
    prompts = [[rng.randrange(3, 30) for _ in range(rng.randint(*lengths))] for _ in range(PROMPTS)]
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    engine = LocalEngine(held.model, end_tokens=ends, max_sequences=PROMPTS * RESPONSES)
    held.model.set_attn_implementation("sdpa")  # as transformers comes; the engine has a copy of its own
    counts: dict[str, list[int]] = {"ours": [], "theirs": [], "vllm": []}
    sampling = Sampling(temperature=1.0, max_new_tokens=NEW_TOKENS)
    engines: dict[str, Engine] = {"ours": engine}
    if find_spec("vllm"):
        engines["vllm"] = VLLMEngine(held.model, end_tokens=ends, max_sequences=PROMPTS * RESPONSES)

    def of(name: str) -> None:
        groups = generate(engines[name], prompts, responses=RESPONSES, sampling=sampling, seed=len(counts[name]))
        counts[name].append(sum(len(c.token_ids) for group in groups for c in group))

    def theirs() -> None:
        torch.manual_seed(len(counts["theirs"]))
        out = held.model.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            max_new_tokens=NEW_TOKENS,
            num_return_sequences=RESPONSES,
            pad_token_id=0,
            eos_token_id=sorted(ends) or None,
        )[:, longest:]
        counts["theirs"].append(_tokens(out, ends))

    work = {"ours": partial(of, "ours"), "theirs": theirs} | (
        {"vllm": partial(of, "vllm")} if "vllm" in engines else {}
    )
    rounds = [{name: seconds(one) for name, one in work.items()} for _ in range(ROUNDS + 1)][1:]
    rates = {name: [n / r[name] for n, r in zip(counts[name][1:], rounds, strict=True)] for name in work}
    found: dict[str, float | str] = {
        "workload": title,
        "ours tokens/s": statistics.median(rates["ours"]),
        "generate tokens/s": statistics.median(rates["theirs"]),
        "ratio": median_ratio(rates["ours"], rates["theirs"]),
        "tokens": counts["ours"][-1],
    }
    if "vllm" in rates:
        found["vLLM tokens/s"] = statistics.median(rates["vllm"])
        found["ratio to vLLM"] = median_ratio(rates["ours"], rates["vllm"])
    return found


def _tokens(out: torch.Tensor, ends: set[int]) -> int:
    """Tokens up to and with the first end."""
    ended = torch.isin(out, torch.tensor(sorted(ends), dtype=out.dtype)).int().cumsum(dim=1)
    return int((ended == 0).sum() + (ended.amax(dim=1) > 0).sum()) if ends else out.numel()


def main() -> None:
    """Print the table."""
    held = policy()
    rows = [
        compare(held, {1}, (24, 48), "ends where the model ends"),
        compare(held, set(), (24, 48), f"{NEW_TOKENS} tokens each"),
    ]
    figures = {"ratio": rows[0]["ratio"], "ratio_fixed_length": rows[1]["ratio"]}
    if "ratio to vLLM" in rows[0]:
        figures |= {"ratio_vllm": rows[0]["ratio to vLLM"], "ratio_vllm_fixed_length": rows[1]["ratio to vLLM"]}
    else:
        print("vLLM is not installed and was left out; `make vllm` installs it")
    show(f"sampling: {PROMPTS} prompts × {RESPONSES} responses, 1.8 M parameters, FP32", rows, figures)


if __name__ == "__main__":
    main()
