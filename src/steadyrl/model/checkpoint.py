"""Checkpoints: safetensors and JSON only, complete or absent.

    RUN/checkpoints/step-000040/
        model/                  loads with AutoModelForCausalLM.from_pretrained
        optimizer.safetensors   moments by parameter name
        state.json              where the run stood
        manifest.json           size and SHA-256 of every file above

A checkpoint is written beside its final name, synced to the disk, and renamed: a kill or a full disk leaves the
earlier ones as they were.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from steadyrl.errors import UserError
from steadyrl.model.loading import Policy


class CheckpointError(UserError):
    """A checkpoint that cannot be written or must not be used. The message names it and the way out."""


def save(folder: Path, policy: Policy, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Write a checkpoint to `folder`, replacing none.

    Raises:
        CheckpointError: the disk is full or not writable; `folder` does not exist then.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        policy.model.save_pretrained(part / "model", safe_serialization=True)
        policy.tokenizer.save_pretrained(part / "model")
        save_file(_moments(policy.model, optimizer), part / "optimizer.safetensors")
        (part / "state.json").write_text(json.dumps(dict(state)))
        (part / "manifest.json").write_text(json.dumps(_manifest(part), indent=1))
        for path in sorted(part.rglob("*")):
            _sync(path)
        os.replace(part, folder)
        _sync(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise CheckpointError(
            f"could not save {folder}: {error}. Earlier checkpoints are intact; make room and resume"
        ) from error


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
    earlier = [path for path in listed(folder.parent) if path.name < folder.name and _fault(path) is None]
    way = f"resume with --checkpoint {earlier[-1].name}, or name its path" if earlier else ""
    offer = f"; {earlier[-1]} is intact: {way}" if earlier else ""
    raise CheckpointError(f"{folder} is damaged: {fault}{offer}")


def listed(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(folder.glob("step-*"))


def drop_after(folder: Path, chosen: Path) -> None:
    """Delete the checkpoints newer than `chosen`: the run goes on from there and will write its own."""
    for later in listed(folder):
        if later.name > chosen.name:
            _delete(later)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and what a kill has left of others."""
    for old in listed(folder)[:-keep]:
        _delete(old)
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
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        return f"manifest.json cannot be read ({error})"
    for name, facts in manifest.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != facts["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {facts['bytes']}"
        if _digest(path) != facts["sha256"]:
            return f"{name} was altered"
    return None


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
