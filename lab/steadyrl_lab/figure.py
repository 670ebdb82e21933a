"""A figure of the lab: one regime, its arms and seeds, and the claims with the rules that decide them.

`lab/figures/NAME.toml` is a figure, `lab/regimes/NAME.toml` a regime: an ordinary recipe, whose cold start is made once
for each seed and shared by every arm. An arm is a label and what it changes in the recipe.
"""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError, model_validator

from steadyrl.options.bounds import JsonDict, PositiveInt
from steadyrl.recipe import Recipe, RecipeError, Rollout, Section, resolve

Measure = Literal[
    "final", "final_greedy", "final_native", "peak", "collapsed", "entropy", "kl", "kl_natural", "disagreement"
]
"""What a run is measured by; see `result.measure`."""


class Higher(Section):
    """An arm's measure is above each of the others' by more than `by`."""

    kind: Literal["higher"] = "higher"
    measure: Measure = "final"
    """What is compared."""
    arm: str
    """The arm that must be above."""
    than: tuple[str, ...] = Field(min_length=1)
    """The arms that must be below."""
    by: float = 0.0
    """How far, at least."""


class Alike(Section):
    """The measures of two arms differ by no more than `within`, either way."""

    kind: Literal["alike"] = "alike"
    measure: Measure = "final"
    """What is compared."""
    arm: str
    """An arm."""
    to: str
    """The other."""
    within: Annotated[float, Field(gt=0.0)]
    """The largest difference that counts as none."""


class Collapses(Section):
    """Most runs of an arm collapse (see `steadyrl.collapse`)."""

    kind: Literal["collapses"] = "collapses"
    arm: str
    """The arm."""


class Stable(Section):
    """Most runs of an arm do not collapse."""

    kind: Literal["stable"] = "stable"
    arm: str
    """The arm."""


class Shows(Section):
    """Around most collapses the entropy is below, or the divergence above, that of every stable run of the figure."""

    kind: Literal["shows"] = "shows"


Rule = Annotated[Higher | Alike | Collapses | Stable | Shows, Field(discriminator="kind")]


class Claim(Section):
    """A claim of the paper, and when it counts as replicated: when every rule holds."""

    id: str
    """Its number, such as `C6`."""
    text: str
    """What is claimed."""
    rules: tuple[Rule, ...] = Field(min_length=1)
    """What must hold; see `verdict`."""
    where_collapses: str | None = None
    """It can be seen only where most runs of this arm collapse: a claim about what saves a run, or fails to."""
    after_runs: bool = False
    """It was written when some of its runs had been seen; the page says so."""

    @property
    def arms(self) -> list[str]:
        """The arms that it names; `FIGURE/ARM` is an arm of another figure."""
        names = [self.where_collapses] if self.where_collapses is not None else []
        for rule in self.rules:
            match rule:
                case Higher():
                    names += [rule.arm, *rule.than]
                case Alike():
                    names += [rule.arm, rule.to]
                case Collapses() | Stable():
                    names.append(rule.arm)
        return names


class Arm(Section):
    """One way to train."""

    label: str
    """Its name in pictures and tables."""
    change: JsonDict = Field(default_factory=dict)
    """What it changes in the regime's recipe."""
    cold: JsonDict = Field(default_factory=dict)
    """What it alone changes in the regime's cold start."""


class Figure(Section):
    """One figure."""

    name: str
    """Stem of its file."""
    title: str
    """Its headline."""
    regime: str
    """Stem of the regime's file."""
    seeds: tuple[int, ...] = Field(min_length=1)
    """Seeds of weights, problems and sampling; every arm has the same."""
    updates: PositiveInt
    """Gradient updates of every arm."""
    minibatches: PositiveInt = 1
    """N: the mini-batch stays as the regime has it, the global batch grows with N."""
    evaluate_every: PositiveInt = 20
    """Updates between evaluations."""
    change: JsonDict = Field(default_factory=dict)
    """What all its arms change in the regime's recipe."""
    cold: JsonDict = Field(default_factory=dict)
    """What all its arms change in the regime's cold start."""
    arms: dict[str, Arm]
    """The arms."""
    claims: tuple[Claim, ...] = ()
    """What it decides."""

    @model_validator(mode="after")
    def _fits(self) -> "Figure":
        for name in ("updates", "evaluate_every"):
            if getattr(self, name) % self.minibatches:
                raise ValueError(f"{name} = {getattr(self, name)} is no multiple of minibatches = {self.minibatches}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {list(self.seeds)} names one twice; a seed counts once")
        for claim in self.claims:
            if unknown := [arm for arm in claim.arms if "/" not in arm and arm not in self.arms]:
                raise ValueError(f"claim {claim.id} names {unknown[0]!r}; the arms are {sorted(self.arms)}")
        return self


def figures(lab: Path) -> list[Figure]:
    """Every figure of a lab, by name.

    Raises:
        RecipeError: the folder has none, or one is malformed.
    """
    if found := [load_figure(lab, path.stem) for path in sorted((lab / "figures").glob("*.toml"))]:
        return found
    raise RecipeError(f"{lab} has no figures (figures/*.toml); name the folder by --lab")


def load_figure(lab: Path, name: str) -> Figure:
    """Read a figure.

    Raises:
        RecipeError: there is none of this name, or its file is malformed.
    """
    path = lab / "figures" / f"{name}.toml"
    if not path.is_file():
        known = [p.stem for p in sorted(path.parent.glob("*.toml"))]
        raise RecipeError(f"{lab} has no figure {name!r}; it has {known}")
    try:
        return Figure.model_validate({"name": name, **_read(path)})
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()]
        raise RecipeError("\n".join([f"{path}: {len(lines)} mistake(s)", *lines])) from error


def cold_name(figure: Figure, arm: str) -> str:
    """What an arm's cold start is called: that of its regime, of its figure, or a separate one."""
    if figure.arms[arm].cold:
        return f"{figure.name}.{arm}"
    return figure.name if figure.cold else figure.regime


def cold_recipe(lab: Path, figure: Figure, arm: str, seed: int) -> Recipe:
    """The cold start of an arm, alone.

    Raises:
        RecipeError: there is no such regime, or its recipe cannot be run.
    """
    path = lab / "regimes" / f"{figure.regime}.toml"
    if not path.is_file():
        known = [p.stem for p in sorted((lab / "regimes").glob("*.toml"))]
        raise RecipeError(f"{lab} has no regime {figure.regime!r}; it has {known}")
    own = changed(changed(_read(path), figure.cold), figure.arms[arm].cold)
    tree = changed(own, {"seed": seed, "steps": 0})
    return resolve(tree, source=str(path))


def arm_recipe(lab: Path, figure: Figure, arm: str, seed: int, *, model: Path) -> Recipe:
    """The recipe of one run.

    Args:
        lab: folder of figures and regimes.
        figure: the figure.
        arm: name of the arm.
        seed: the run's seed.
        model: folder of the cold start's model.
    """
    tree = _read(lab / "regimes" / f"{figure.regime}.toml")
    tree = changed(changed(tree, figure.change), figure.arms[arm].change)
    n, prompts = figure.minibatches, tree.get("rollout", {}).get("prompts", Rollout().prompts)
    batch = {
        "seed": seed,
        "steps": figure.updates // n,
        "model": {"kind": "pretrained", "path": str(model)},
        "rollout": {"prompts": prompts * n},
        "update": {"minibatches": n},
        "evaluate": {"every": figure.evaluate_every // n},
        "checkpoints": {"every": figure.evaluate_every // n},
    }
    tree = {name: value for name, value in changed(tree, batch).items() if name != "cold_start"}
    return resolve(tree, source=f"{figure.name}, arm {arm}")


def changed(tree: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """A tree with some values replaced. Another `kind` or `name` begins its section anew."""
    merged = dict(tree)
    for key, value in change.items():
        below = tree.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            another = any(tag in value and value[tag] != below.get(tag) for tag in ("kind", "name"))
            merged[key] = value if another else changed(below, value)
        else:
            merged[key] = value
    return merged


class Recipes(NamedTuple):
    """What a run is: the recipes of its cold start and of itself."""

    cold: Recipe
    """Of its cold start."""
    own: Recipe
    """Its own; the model is what the cold start leaves."""

    def dump(self, *, exclude_defaults: bool = False) -> dict[str, Any]:
        """Both as plain values, without the path of the model."""
        own = self.own.model_dump(mode="json", exclude={"model"}, exclude_defaults=exclude_defaults)
        return {"cold": self.cold.model_dump(mode="json", exclude_defaults=exclude_defaults), "own": own}


def recipes_of(lab: Path, figure: Figure, arm: str, seed: int) -> Recipes:
    """The recipes of a run as the figure now has them."""
    return Recipes(cold_recipe(lab, figure, arm, seed), arm_recipe(lab, figure, arm, seed, model=Path()))


def changed_fields(then: Mapping[str, Any], now: Recipes) -> list[str]:
    """The fields in which a stored dump differs from the recipes of today.

    A field that recipes have got since counts only where its value is not the default: the stored run had no other.
    """
    return list(_differences(then, now.dump(), now.dump(exclude_defaults=True), ""))


def _differences(then: Mapping[str, Any], now: Mapping[str, Any], chosen: Any, above: str) -> Iterator[str]:
    for name, value in now.items():
        own = chosen.get(name, {})
        if isinstance(value, dict) and isinstance(then.get(name, {}), dict):
            yield from _differences(then.get(name, {}), value, own, f"{above}{name}.")
        elif then[name] != value if name in then else name in chosen:
            yield above + name
    yield from (above + name for name in then if name not in now)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"cannot read {path}: {error}") from error
