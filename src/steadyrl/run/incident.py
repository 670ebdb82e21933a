"""What is kept of a run that stopped: the last weights that are good, and the mini-batch it stopped over."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from steadyrl.model.loading import Policy
from steadyrl.run import checkpoint
from steadyrl.training.forward import OldPass


def save_incident(
    run: Path,
    policy: Policy,
    optimizer: Optimizer,
    state: Mapping[str, Any],
    minibatch: Sequence[OldPass],
    *,
    broken: bool,
) -> Path:
    """Write `RUN/incident`, in place of that of an earlier stop, and return the folder.

    Where the weights are `broken`, those of the newest checkpoint take their place, if there is one.

    Raises:
        OSError, SafetensorError, CheckpointError, NoRoomError: it cannot be written.
    """
    folder, newest = run / "incident", checkpoint.listed(run / "checkpoints")[-1:]
    shutil.rmtree(folder, ignore_errors=True)
    if not broken:
        checkpoint.save(folder, policy, optimizer, state)
    elif newest:
        shutil.copytree(newest[0], folder)
    else:
        folder.mkdir()
    tensors = {
        f"{number}.{name}": value.contiguous()
        for number, old in enumerate(minibatch)
        for name, value in _tensors(old).items()
    }
    if tensors:
        save_file(tensors, folder / "batch.safetensors")
    return folder


def _tensors(old: OldPass) -> dict[str, Tensor]:
    batch, micro = old.micro.batch, old.micro
    return {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "blocks": torch.tensor(batch.blocks),
        "cells": batch.cells,
        "targets": batch.targets,
        "predicting": batch.predicting,
        "advantages": micro.advantages,
        "rollout_logprobs": micro.rollout_logprobs,
        "old_logprobs": old.old_logprobs,
        **({} if old.replayed is None else {"routes": old.replayed}),
    }
