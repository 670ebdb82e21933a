"""The demo with five seeds: does it work every time, and how long does it take?"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from _measure import QUICK, seconds, show, sized

SEEDS = range(sized(5, 1))
RECIPE = "smoke" if QUICK else "demo"


def main() -> None:
    """Run the demo once for each seed, and print what its evaluations say."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            run = Path(folder) / str(seed)
            command = [sys.executable, "-m", "steadyrl", "train", RECIPE, "--run", run, "--seed", str(seed)]
            took = seconds(lambda command=command: subprocess.run(command, check=True, stdout=sys.stderr))
            rows.append({"seed": seed, **accuracies(run), "s": took})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    figures = {
        "worst_rise": min(row["rise"] for row in rows),
        "longest_s": max(row["s"] for row in rows),
        "intervals_apart": all(row["apart"] for row in rows),
    }
    show(f"{RECIPE}: held-out accuracy before → after", rows, figures)


def accuracies(run: Path) -> dict[str, object]:
    """Accuracy at T=1 in the sampler's precision, and the others beside it."""
    evaluations = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    last = max(row["step"] for row in evaluations)
    by_kind = {(row["step"], row["mode"], row["precision"]): row for row in evaluations}
    before, after = by_kind[0, "sampled", "fp8"], by_kind[last, "sampled", "fp8"]
    shown = {
        f"{mode} {precision}": f"{by_kind[0, mode, precision]['accuracy']:.3f} → "
        f"{by_kind[last, mode, precision]['accuracy']:.3f}"
        for mode in ("sampled", "greedy")
        for precision in ("fp8", "native")
    }
    rise = after["accuracy"] - before["accuracy"]
    return {**shown, "rise": rise, "apart": before["high"] < after["low"]}


if __name__ == "__main__":
    main()
