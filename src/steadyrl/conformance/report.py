"""Running the checks of Routing Replay on models, and the tables that come of it."""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig

from steadyrl.conformance.checks import CHECKS, IDS, CheckFailed, Subject
from steadyrl.conformance.families import FAMILIES, family_of, named_config, small_config
from steadyrl.conformance.gates import NotApplicable
from steadyrl.errors import UserError
from steadyrl.model.loading import config_of, load_model
from steadyrl.model.repeatable import repeatable
from steadyrl.routing import RoutingError, check_replay

MARKS = {"held": "✓", "broken": "FAILS", "idle": "–"}


class ConformanceError(UserError):
    """A model that cannot be examined; the message names it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckOutcome:
    """What one check found."""

    check: str
    """Its name in `CHECKS`."""
    found: Literal["held", "broken", "idle"]
    """Whether the promise was held; `idle` where the model lacks what it is about."""
    why: str = ""
    """What was broken or is lacking."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conformance:
    """What all checks found of one model."""

    name: str
    """The family, or the path that was given."""
    refused: str | None = None
    """Why replay refuses the model; no check was run then."""
    outcomes: tuple[CheckOutcome, ...] = ()
    """One for each check."""

    @property
    def conforms(self) -> bool:
        """Whether the model can be replayed, and every promise was held."""
        return self.refused is None and all(outcome.found != "broken" for outcome in self.outcomes)

    @property
    def as_expected(self) -> bool:
        """Whether a listed family conforms, or is refused for the reason that is listed."""
        expected = FAMILIES[self.name].refused
        return self.conforms if expected is None else self.refused is not None and expected in self.refused


def examine(name: str, subject: Subject) -> Conformance:
    """Hold a model against every promise."""
    try:
        check_replay(subject.build())
    except RoutingError as refusal:
        return Conformance(name=name, refused=str(refusal))
    return Conformance(name=name, outcomes=tuple(outcome_of(check, subject) for check in CHECKS))


def outcome_of(check: str, subject: Subject) -> CheckOutcome:
    """Hold a model against one promise."""
    try:
        with repeatable(torch.device("cpu")):
            CHECKS[check](subject)
    except NotApplicable as lack:
        return CheckOutcome(check=check, found="idle", why=str(lack))
    except (CheckFailed, RoutingError) as failure:
        return CheckOutcome(check=check, found="broken", why=str(failure))
    return CheckOutcome(check=check, found="held")


def listed_subject(name: str) -> Subject:
    """The small model of a family that is listed."""
    return Subject(config=named_config(name), gate=FAMILIES[name].gate, many=named_config(name, experts=300))


def subject_of(model: str, *, weights: bool) -> Subject:
    """The small model of a family or of a saved model's config; with `weights`, the saved model itself.

    Raises:
        ConformanceError: transformers does not know the family, or no small model can be made of the config.
        ModelError: there is nothing to load at the path.
    """
    if model in FAMILIES and not weights:
        return listed_subject(model)
    if model in CONFIG_MAPPING and not Path(model).exists():
        if weights:
            raise ConformanceError(f"--weights needs a saved model; {model!r} is the name of a family")
        own = AutoConfig.for_model(model).get_text_config()
    else:
        own = config_of(model, revision=None, trust_remote_code=False).get_text_config()
    family = family_of(own.model_type)
    if weights:
        trained = load_model(model, dtype=torch.float32).eval()
        if trained.config.get_text_config().vocab_size <= int(IDS.max()):
            raise ConformanceError(f"{model!r} has fewer tokens than the {int(IDS.max()) + 1} that the checks use")
        return Subject(config=trained.config, gate=family.gate, model=trained)
    try:
        small = small_config(own, family, as_found=True)
        return Subject(config=small, gate=family.gate, many=small_config(own, family, experts=300, as_found=True))
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ConformanceError(f"no small {own.model_type} can be made of {model!r}: {error}; try --weights") from error


def every_family() -> Iterator[Conformance]:
    """All families that are listed, one after the other."""
    for name in FAMILIES:
        yield examine(name, listed_subject(name))


def lines(verdict: Conformance) -> str:
    """One model's verdict, a line for each check."""
    if verdict.refused is not None:
        return f"{verdict.name}: refused. {verdict.refused}"
    found = [f"  {MARKS[o.found]:6} {o.check:16} {o.why}".rstrip() for o in verdict.outcomes]
    return "\n".join([f"{verdict.name}: {'conforms' if verdict.conforms else 'does not conform'}", *found])


def row(verdict: Conformance) -> str:
    """One model's row of the families' table, in Markdown."""
    if verdict.refused is not None:
        return f"| `{verdict.name}` | {verdict.refused} |"
    return f"| `{verdict.name}` | {' | '.join(MARKS[outcome.found] for outcome in verdict.outcomes)} |"


def page(verdicts: Iterable[Conformance]) -> str:
    """The page of all families, in Markdown."""
    verdicts = list(verdicts)
    idle: dict[str, list[str]] = {}
    for verdict in verdicts:
        for outcome in verdict.outcomes:
            if outcome.found == "idle":
                idle.setdefault(f"*{outcome.check}*: {outcome.why}", []).append(f"`{verdict.name}`")
    described = [f"* **{name}**: {(check.__doc__ or '').strip()}" for name, check in CHECKS.items()]
    return "\n".join(
        [
            "# Routing Replay, family by family",
            "",
            "Printed by `steadyrl conformance --all`; do not edit. Small models with random weights, in float32 unless",
            f"said otherwise; transformers {transformers.__version__}. How replay works is in",
            "[routing-replay.md](routing-replay.md).",
            "",
            f"| family | {' | '.join(CHECKS)} |",
            f"|---|{'---|' * len(CHECKS)}",
            *(row(verdict) for verdict in verdicts if verdict.refused is None),
            "",
            "## What is checked",
            "",
            *described,
            "",
            "## Where a check has no object (–)",
            "",
            *(f"* {why}: {', '.join(names)}" for why, names in idle.items()),
            "",
            "## Refused by name",
            "",
            "| family | reason |",
            "|---|---|",
            *(row(verdict) for verdict in verdicts if verdict.refused is not None),
        ]
    )


def run(model: str | None, *, weights: bool) -> int:
    """Examine one model, or every family where none is given; print what was found; 1 if any promise is broken."""
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", module="torch")
    if model is not None:
        verdict = examine(model, subject_of(model, weights=weights))
        print(lines(verdict))
        return 0 if verdict.conforms else 1
    verdicts = list(every_family())
    print(page(verdicts))
    return 0 if all(verdict.as_expected for verdict in verdicts) else 1
