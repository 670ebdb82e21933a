"""The recipe: one frozen tree that says everything a run depends on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from steadyrl.options.bounds import Count, Fixed, Within
from steadyrl.recipe.base import Section
from steadyrl.recipe.explaining import explain
from steadyrl.recipe.sections import (
    Checkpoints,
    ColdStart,
    Evaluate,
    Optimizer,
    PretrainedModel,
    Prompt,
    Rollout,
    Rollouts,
    Runtime,
    TinyModel,
    Update,
    Verifier,
)
from steadyrl.recipe.variants import (
    SECTIONS,
    AdvantageSection,
    Chosen,
    EngineSection,
    ObjectiveSection,
    TaskSection,
)


class Recipe(Section):
    """Everything that a run depends on."""

    seed: Annotated[int, Within(ge=0, lt=2**63)] = 0
    """Seed of the weights, the order of the prompts and the sampling."""
    steps: Count = 100
    """Global steps; 0: the cold start alone."""
    model: Annotated[PretrainedModel | TinyModel, Field(discriminator="kind")]
    """The model that is trained."""
    runtime: Runtime = Runtime()
    """Precision, device and memory of the trained model."""
    task: Annotated[TaskSection, Chosen("task")]
    """Where prompts and rewards come from."""
    prompt: Prompt = Prompt()
    """How questions become prompts."""
    verifier: Verifier = Verifier()
    """Limits on the verifier."""
    engine: Annotated[EngineSection, Chosen("engine")] = SECTIONS["engine"]["local"]()
    """What samples."""
    rollout: Rollout = Rollout()
    """What one global step samples."""
    objective: Annotated[ObjectiveSection, Chosen("objective")] = SECTIONS["objective"]["minirl"]()
    """What is maximised."""
    advantage: Annotated[AdvantageSection, Chosen("advantage")] = SECTIONS["advantage"]["group"]()
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

    @classmethod
    def load(cls, given: str | Path) -> "Recipe":
        """Read the recipe that comes with SteadyRL under this name, or a TOML file.

        Raises:
            RecipeError: there is none, or it cannot be used.
        """
        from steadyrl.recipe.shipped import read

        return read(str(given))

    def replace(self, **sections: Any) -> "Recipe":
        """Change values: `recipe.replace(seed=1, optimizer={"learning_rate": 1e-4})`.

        A mapping changes the fields of a section that it has; one that names another `kind` or `name` takes the place
        of the section.

        Raises:
            RecipeError: a field is unknown, mistyped or out of range.
        """
        from steadyrl.recipe.loading import resolve

        tree = self.model_dump(mode="json")
        for name, value in sections.items():
            held = tree.get(name)
            if isinstance(held, dict) and isinstance(value, Mapping):
                other = any(value.get(tag, held.get(tag)) != held.get(tag) for tag in ("kind", "name"))
                value = value if other else {**held, **value}
            tree[name] = value
        return resolve(tree, source="Recipe.replace") if sections else self

    @model_validator(mode="after")
    def _stages_fit(self) -> "Recipe":
        for number, stage in enumerate(self.cold_start.stages if self.cold_start else (), start=1):
            for name in sorted(stage.task.keys() & type(self.task).model_fields.keys()):
                for mark in type(self.task).model_fields[name].metadata:
                    if isinstance(mark, Fixed):
                        raise ValueError(f"stage {number} of cold_start changes task.{name}: {mark.reason}")
            try:
                type(self.task).model_validate(self.task.model_dump() | stage.task)
            except ValidationError as error:
                mistakes = "; ".join(explain(detail, type(self.task)) for detail in error.errors())
                raise ValueError(f"the task of stage {number} of cold_start: {mistakes}") from error
        return self

    @model_validator(mode="after")
    def _sets_fit(self) -> "Recipe":
        names = [other.name for other in self.evaluate.sets]
        if names and self.task.kind != "questions":
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
