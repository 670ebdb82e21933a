"""A sweep over learning rates: `python examples/sweep.py [FOLDER]`. Half a minute a run on two cores."""

import sys
from pathlib import Path

from steadyrl import Recipe, train

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/sweep")
for rate in (3e-4, 1e-3, 3e-3):
    recipe = Recipe.load("smoke").replace(optimizer={"learning_rate": rate})
    run = train(
        recipe, run=folder / f"lr-{rate:g}", on_step=lambda step: print(step.number, step.reward, step.mismatch)
    )
    print(f"learning rate {rate:g}: accuracy {run.evaluations[-1]['accuracy']:.3f}, report {run.report}")
