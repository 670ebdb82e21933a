"""`steadyrl gap RUN`."""

import argparse
from pathlib import Path

from steadyrl.run.progress import Display
from steadyrl.saved import TRUST, trusted, verified
from steadyrl.start import import_torch


def main(argv: list[str]) -> int:
    """Compare the gradients of one step."""
    parser = argparse.ArgumentParser(
        "steadyrl gap",
        description="Compare the token-level gradient with the sequence-level one before each update of one global "
        "step, which is repeated in memory from the newest checkpoint; nothing of the run is changed.",
    )
    parser.add_argument("run", type=Path, help="run directory, or one of its checkpoints")
    parser.add_argument("--responses", type=int, default=64, help="responses of a mini-batch that are compared (64)")
    parser.add_argument(TRUST, action="store_true", help="run the Python code of the run's own model")
    options = parser.parse_args(argv)
    folder, recipe = verified(options.run)
    trusted(recipe, options.run, options.trust_remote_code)
    import_torch()
    from steadyrl.gap import compare, table

    with Display().bar("comparing gradients"):
        rows = list(compare(folder, recipe, responses=options.responses))
    print(
        f"{folder}, replay {recipe.update.replay}: both factors and Δ over each mini-batch, gradients over `responses`"
    )
    print(table(rows))
    return 0
