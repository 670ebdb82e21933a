"""Digests of what a run reads, so that resuming it notices what has changed."""

import ast
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from steadyrl.config import PretrainedModel, QuestionsTask, Recipe
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
    """Digests of the data rows in use, of the user's reward function, and of the model without its weights."""
    found: dict[str, str] = {}
    if isinstance(task, Questions) and isinstance(recipe.task, QuestionsTask):
        sets = {one.name: task.size(one.name) for one in recipe.evaluate.sets}
        others = sum(1 for _ in task.examples) - sum(sets.values())
        found["the rows of task.path"] = f"{others} rows, {task.digest('train', 'held_out')}"
        found |= {
            f"the rows of evaluate.sets, {name}": f"{size} rows, {task.digest(name)}" for name, size in sets.items()
        }
        file, _, _ = recipe.task.reward.rpartition(":")
        own = _with_neighbours(Path(file)) if file else ()
        found |= {f"task.reward: {path.relative_to(Path(file).parent)}": _digest(path.read_bytes()) for path in own}
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


def _with_neighbours(file: Path) -> list[Path]:
    """A Python file, and what it imports, directly or not, from its own folder."""
    found, waiting = [], [file]
    while waiting:
        path = waiting.pop()
        if path not in found and path.is_file():
            found.append(path)
            waiting += [near for name in _imported(path) for near in _named(file.parent, name)]
    return found


def _imported(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # whoever loads it is told
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from [node.module.partition(".")[0]] if node.module else [alias.name for alias in node.names]


def _named(folder: Path, name: str) -> list[Path]:
    if (folder / name / "__init__.py").is_file():
        return sorted((folder / name).rglob("*.py"))
    return [folder / f"{name}.py"]


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
