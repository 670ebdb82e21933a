"""What is known about the verifiers of reasoning-gym: the table that `gym_audit` measured, and what it forbids."""

import functools
import importlib.metadata
import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from steadyrl.tasks.base import TaskError

Own = Literal["paid", "unpaid", "example paid", "untested"]
_FILE = "reasoning_gym.json"
_HINT = "`python -m steadyrl.tasks.gym_audit` measures the installed version"


@dataclass(frozen=True, kw_only=True, slots=True)
class GymVerdict:
    """What was measured for the verifier of one dataset.

    For instance, `GymVerdict(junk=1.0, form="refusal", response="I do not know.", near=1.0, code=False, own="paid")`.
    """

    junk: float
    """The highest reward of a junk response that has nothing to do with the answer, from 0 to 1."""
    form: str
    """What kind of junk earned it; empty where none earned anything."""
    response: str
    """That response, cut to its first characters."""
    near: float
    """The highest reward of half an answer, of two answers and of another problem's answer: partial credit, below 1."""
    code: bool
    """Code that stood in an answer was run."""
    own: Own
    """Whether the dataset's own answers are paid in full. It may give none; some of these have an example instead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GymTable:
    """The verifiers of one version of reasoning-gym."""

    version: str
    """The version that was measured."""
    datasets: dict[str, GymVerdict]
    """By the dataset's name."""


@functools.cache
def table() -> GymTable:
    """The table that SteadyRL ships."""
    stored = json.loads(files("steadyrl.tasks").joinpath(_FILE).read_text(encoding="utf-8"))
    return GymTable(version=stored["version"], datasets={n: GymVerdict(**v) for n, v in stored["datasets"].items()})


def refuse_untrusted(dataset: str, *, min_reward: float, allow_code: bool) -> None:
    """Reject a dataset whose verifier pays junk, or runs code without `allow_code`.

    Raises:
        TaskError: naming the dataset and what was found.
    """
    known = table()
    if dataset not in known.datasets:
        if not allow_code:
            raise TaskError(
                f"task.dataset = {dataset!r}: it is not known whether its verifier runs code from a response. "
                f"The table is of reasoning-gym {known.version}; {_HINT}. Set task.allow_code = true to accept the risk"
            )
        return
    verdict = known.datasets[dataset]
    if verdict.code:
        if not allow_code:
            raise TaskError(
                f"task.dataset = {dataset!r}: its verifier runs Python code from a response, with your rights. "
                "Use another dataset, or set task.allow_code = true on a machine where that does no harm"
            )
        return  # whoever lets code run knows that it can compute any answer
    if verdict.junk >= min_reward:
        way_out = "use another dataset" if verdict.junk >= 1.0 else f"raise task.min_reward above {verdict.junk:g}"
        raise TaskError(
            f"task.dataset = {dataset!r}: its verifier gives {verdict.junk:g} for junk ({verdict.form}: "
            f"{verdict.response!r}), and task.min_reward = {min_reward:g} would pay that; {way_out}"
        )


def other_version() -> str | None:
    """A warning where another version of reasoning-gym is installed than the one that was measured, else None."""
    installed, known = importlib.metadata.version("reasoning-gym"), table().version
    if installed == known:
        return None
    return (
        f"the verifiers of reasoning-gym were audited in version {known}, and {installed} is installed: "
        f"they may pay junk or run code from a response. Install reasoning-gym=={known}; {_HINT}"
    )


def markdown(shown: GymTable) -> str:
    """The table as a page shows it: refused datasets first."""
    lines = ["| dataset | junk | for | near the answer | code in an answer | own answer |", "|---|---|---|---|---|---|"]
    for name, one in sorted(shown.datasets.items(), key=lambda item: (-item[1].code, -item[1].junk, item[0])):
        code = "**runs**" if one.code else "does not run"
        lines.append(f"| `{name}` | {one.junk:g} | {one.form or '–'} | {one.near:g} | {code} | {one.own} |")
    return "\n".join(lines)
