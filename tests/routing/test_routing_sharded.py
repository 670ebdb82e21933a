"""Replay under fully sharded data parallelism, on two processes that talk over gloo."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from steadyrl.conformance.checks import IDS, foreign, gradients_of
from steadyrl.conformance.families import build, named_config
from steadyrl.routing import replay

RANKS = 2


FAMILIES = ("qwen3_moe", "deepseek_v2 (group-limited)")


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    for family in FAMILIES:
        save_file(own_half(family, rank), f"{folder}/{family} {rank}.safetensors")
    dist.destroy_process_group()


def own_half(family: str, rank: int) -> dict[str, Tensor]:
    """Logits of the rank's row of the batch, and the gradient of the whole batch."""
    model = build(named_config(family))
    routes = foreign(model, IDS)  # before sharding: all ranks know the routes of the whole batch
    mesh = init_device_mesh("cpu", (RANKS,))
    for layer in model.base_model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    with replay(model, routes.view(*IDS.shape, *routes.shape[1:])[rank]):
        logits, gradients = gradients_of(model, IDS[rank][None])
    whole = {name: gradient.full_tensor() * RANKS for name, gradient in gradients.items()}  # a mean over ranks
    return {"logits": logits.contiguous(), **whole}


def test_two_ranks_replay_as_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_rank, (str(tmp_path),), nprocs=RANKS)
    for family in FAMILIES:
        model = build(named_config(family))
        with replay(model, foreign(model)):
            logits, gradients = gradients_of(model)
        ranks = [load_file(tmp_path / f"{family} {rank}.safetensors") for rank in range(RANKS)]
        torch.testing.assert_close(torch.cat([rank.pop("logits") for rank in ranks]), logits)
        for rank in ranks:
            assert rank.keys() == gradients.keys()
            for name, gradient in gradients.items():
                torch.testing.assert_close(rank[name], gradient, atol=1e-4, rtol=1e-4)
