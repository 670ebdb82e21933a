"""The recipe: what a run depends on, in sections whose fields carry their meaning, range and default.

A recipe is a TOML file. It chooses the variants (which model, task, engine, objective); single values are then changed
from the command line (``--optimizer.learning_rate 1e-4``). `algo`, `model`, `engine` and `tasks` never read this tree:
their functions take plain keyword arguments. Nothing here loads torch, so that a mistake is told at once.
"""

from steadyrl.recipe.base import RecipeError, Section
from steadyrl.recipe.explaining import VARIANTS
from steadyrl.recipe.loading import SEEN, load, resolve
from steadyrl.recipe.sections import (
    ColdStart,
    Evaluate,
    Optimizer,
    PretrainedModel,
    Prompt,
    Rollout,
    Stage,
    TinyModel,
)
from steadyrl.recipe.tree import Recipe
from steadyrl.recipe.variants import AdvantageSection, EngineSection, ObjectiveSection, TaskSection

__all__ = [
    "SEEN",
    "VARIANTS",
    "AdvantageSection",
    "ColdStart",
    "EngineSection",
    "Evaluate",
    "ObjectiveSection",
    "Optimizer",
    "PretrainedModel",
    "Prompt",
    "Recipe",
    "RecipeError",
    "Rollout",
    "Section",
    "Stage",
    "TaskSection",
    "TinyModel",
    "load",
    "resolve",
]
