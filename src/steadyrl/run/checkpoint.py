"""Checkpoints: safetensors and JSON only, complete or absent.

    RUN/checkpoints/step-000040/
        model/                  loads with AutoModelForCausalLM.from_pretrained
        optimizer.safetensors   moments by parameter name
        state.json              counters of the run
        manifest.json           size and SHA-256 of every file above

A checkpoint is written under another name, synced to disk and renamed. A kill or a full disk does not change earlier
checkpoints.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from steadyrl.errors import NO_ROOM, RunStopped, UserError
from steadyrl.model.loading import Policy

_NAME = re.compile(r"step-(\d+)")
_NEEDED = {"model/config.json", "optimizer.safetensors", "state.json"}


class CheckpointError(UserError):
    """A checkpoint that cannot be written or must not be used. The message names it and the way out."""


class NoRoomError(RunStopped):
    """The disk has no room for a checkpoint; the earlier ones are intact."""


class NotFiniteError(RunStopped):
    """Weights that are not finite, which no checkpoint may hold. The message names the first of them."""


def save(folder: Path, policy: Policy, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Write a checkpoint to `folder`, replacing none.

    Raises:
        NotFiniteError: a weight is NaN or infinite.
        NoRoomError: the disk is full.
        CheckpointError: the folder is not writable. `folder` does not exist then, nor in the other cases.
    """
    require_finite(policy.model)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        policy.model.save_pretrained(part / "model", safe_serialization=True)
        _save_tokenizer(policy, part / "model")
        save_file(_moments(policy.model, optimizer), part / "optimizer.safetensors")
        (part / "state.json").write_text(json.dumps(dict(state)))
        (part / "manifest.json").write_text(json.dumps(_manifest(part), indent=1))
        for path in sorted(part.rglob("*")):
            _sync(path)
        os.replace(part, folder)
        _sync(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        if _no_room(error):
            raise NoRoomError(
                f"could not save {folder}: {error}. Earlier checkpoints are intact; make room and resume"
            ) from error
        raise CheckpointError(
            f"could not save {folder}: {error}. Earlier checkpoints are intact; give the permission and resume"
        ) from error


def _save_tokenizer(policy: Policy, folder: Path) -> None:
    try:
        policy.tokenizer.save_pretrained(folder)
    except Exception as error:  # tokenizers knows no other for a disk that is full
        if not isinstance(error, OSError) and (full := _no_room(error)):
            raise OSError(min(full), str(error)) from error
        raise


def _no_room(error: Exception) -> frozenset[int]:
    """The error numbers by which a write had no room; safetensors and tokenizers give them in words alone."""
    codes = {error.errno} if isinstance(error, OSError) else set(map(int, re.findall(r"os error (\d+)", str(error))))
    return NO_ROOM & codes


def require_finite(model: nn.Module) -> None:
    """Reject weights that are NaN or infinite.

    Raises:
        NotFiniteError: with the name of the first of them.
    """
    for name, value in model.named_parameters():
        if not bool(value.detach().isfinite().all()):
            raise NotFiniteError(f"the weights are not finite, {name} first")


def restore(folder: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load a checkpoint into a model and its optimizer, and return its state.

    Raises:
        CheckpointError: a file is missing, truncated or altered.
    """
    verify(folder)
    # through transformers, which saves experts one by one and holds them fused
    saved = type(policy.model).from_pretrained(folder / "model", dtype=policy.model.dtype, use_safetensors=True)
    try:
        policy.model.load_state_dict(saved.state_dict())
    except RuntimeError as error:
        raise CheckpointError(f"{folder} belongs to another model: {error}") from error
    _restore_moments(policy.model, optimizer, load_file(folder / "optimizer.safetensors"))
    return json.loads((folder / "state.json").read_text())


def verify(folder: Path) -> None:
    """Hold every file of a checkpoint against its manifest.

    Raises:
        CheckpointError: one is missing, truncated or altered; the message offers the checkpoint before.
    """
    fault = _fault(folder)
    if fault is None:
        return
    earlier = [path for path in listed(folder.parent) if _step(path) < _step(folder) and _fault(path) is None]
    way = f"resume with --checkpoint {earlier[-1].name}, or name its path" if earlier else ""
    offer = f"; {earlier[-1]} is intact: {way}" if earlier else ""
    raise CheckpointError(f"{folder} is damaged: {fault}{offer}")


def listed(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first: its folders `step-<digits>`. Others, such as a copy, are the user's."""
    found = (path for path in folder.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir())
    return sorted(found, key=_step)


def _step(folder: Path) -> int:
    """The step of a checkpoint; −1 for a folder that is none, such as the weights of an incident."""
    name = _NAME.fullmatch(folder.name)
    return int(name.group(1)) if name else -1


def drop_after(folder: Path, chosen: Path) -> None:
    """Delete the checkpoints newer than `chosen`: the run continues from there and writes them again."""
    for later in listed(folder):
        if _step(later) > _step(chosen):
            _delete(later)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and what a kill has left of others."""
    for old in listed(folder)[:-keep]:
        _delete(old)
    sweep(folder)


def sweep(folder: Path) -> None:
    """Delete what a kill has left of checkpoints that were being written or deleted."""
    for part in folder.glob(".step-*.part"):
        shutil.rmtree(part)


def _delete(folder: Path) -> None:
    """Take away the name first: a kill halfway leaves no damaged checkpoint."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    folder.rename(part)
    shutil.rmtree(part)


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _fault(folder: Path) -> str | None:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return f"manifest.json cannot be read ({error})"
    if not _is_manifest(manifest):
        return "manifest.json was altered: it does not list the size and SHA-256 of every file"
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    if unlisted := (present & _NEEDED) - manifest.keys():
        return f"manifest.json was altered: it does not list {min(unlisted)}"
    for name, facts in manifest.items():
        if name not in present:
            return f"{name!r} is missing" if not name.isprintable() else f"{name} is missing"
        size = (folder / name).stat().st_size
        if size != facts["bytes"]:
            return f"{name} has {size} bytes instead of {facts['bytes']}"
        if _digest(folder / name) != facts["sha256"]:
            return f"{name} was altered"
    return None


def _is_manifest(found: Any) -> bool:
    """Whether a value has the form that `_manifest` writes and names what a checkpoint needs."""
    return (
        isinstance(found, dict)
        and bool(found)
        and all(isinstance(facts, dict) and facts.keys() == {"bytes", "sha256"} for facts in found.values())
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's state as `parameter:field`."""
    return {
        f"{name}:{field}": value.contiguous()
        for name, parameter in model.named_parameters()
        for field, value in optimizer.state.get(parameter, {}).items()
    }


def _restore_moments(model: nn.Module, optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> None:
    optimizer.state.clear()
    parameters = dict(model.named_parameters())
    for key, value in moments.items():
        name, field = key.rsplit(":", 1)
        parameter = parameters[name]
        device = "cpu" if field == "step" and not parameter.is_cuda else parameter.device
        optimizer.state[parameter][field] = value.to(device)
