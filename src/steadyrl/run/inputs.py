"""Digests of what a run reads, so that resuming it notices what has changed."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from steadyrl.options.own import OwnCode
from steadyrl.recipe import PretrainedModel, Recipe
from steadyrl.recipe.building import own_code
from steadyrl.tasks.base import Task
from steadyrl.tasks.questions import Questions

MODEL_FILES = (
    "*config.json",
    "tokenizer.json",
    "chat_template*",
    "additional_chat_templates/*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "*.py",
)
"""Files of a model's folder that say what its tokens and layers mean."""
Inputs = Mapping[str, str]
"""Digests by what they are of."""


def inputs_of(recipe: Recipe, task: Task) -> dict[str, str]:
    """Digests of the data rows in use, of the user's own code, and of the model without its weights."""
    found: dict[str, str] = {}
    if isinstance(task, Questions):
        sets = {one.name: task.size(one.name) for one in recipe.evaluate.sets}
        others = sum(1 for _ in task.examples) - sum(sets.values())
        found["the rows of task.path"] = f"{others} rows, {task.digest('train', 'held_out')}"
        found |= {
            f"the rows of evaluate.sets, {name}": f"{size} rows, {task.digest(name)}" for name, size in sets.items()
        }
        found |= _own("task.reward", task.own_file)
    for section in (recipe.task, recipe.engine, recipe.objective, recipe.advantage):
        found |= _own(section.section, own_code(section))
    if isinstance(recipe.model, PretrainedModel):
        found |= _model(recipe.model)
    return found


def changes(before: Inputs, now: Inputs) -> dict[str, tuple[str | None, str | None]]:
    """What differs, by name: its digest before and now, None where it was not there."""
    names = [*before, *(name for name in now if name not in before)]
    return {name: (before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)}


def told(changed: Mapping[str, tuple[str | None, str | None]]) -> str:
    """Changes for people, a line each."""
    return "\n".join(
        f"  {name}: {_short(before)} when the run began or was last accepted, {_short(now)} now"
        for name, (before, now) in changed.items()
    )


def _short(digest: str | None) -> str:
    if digest is None:
        return "absent"
    *count, mark = digest.split(", ")
    return ", ".join([*count, mark[:12]])


def _own(field: str, place: OwnCode | None) -> dict[str, str]:
    """Digests of the files of the user's own code."""
    if place is None:
        return {}
    return {f"{field}: {path.relative_to(place.file.parent)}": _digest(path.read_bytes()) for path in place.files()}


def _model(model: PretrainedModel) -> dict[str, str]:
    folder = Path(model.path)
    if not folder.is_dir():
        cached = try_to_load_from_cache(model.path, "config.json", revision=model.revision)
        return {"model.path: commit": Path(cached).parent.name} if isinstance(cached, str) else {}
    files = sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern) if path.is_file()})
    weights = sorted(folder.glob("*.safetensors"))
    return {
        **{f"model.path: {path.relative_to(folder)}": _digest(path.read_bytes()) for path in files},
        **{f"model.path: {path.name}, names and shapes": _digest(_header(path)) for path in weights},
    }


def _header(path: Path) -> bytes:
    """The header of a safetensors file: its length in 8 bytes, then names, types, shapes and places."""
    with path.open("rb") as file:
        length = file.read(8)
        return length + file.read(min(int.from_bytes(length, "little"), path.stat().st_size))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
