"""The processes that train together, and which numbers their processors are fast with. No torch before it is needed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from mobilenets.errors import UserError

if TYPE_CHECKING:
    from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment


def fast_bf16() -> bool:
    """Whether the processor that computes has instructions for 16-bit brain floats."""
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


def world() -> tuple[int, int]:
    """(number of processes, this one's rank), as torchrun or srun sets them; (1, 0) without either."""
    if "WORLD_SIZE" in os.environ:  # first: torchrun may itself have been started by srun, once on each machine
        return _number("WORLD_SIZE"), _number("RANK", 0)
    if _by_srun():
        return _number("SLURM_NTASKS"), _number("SLURM_PROCID")
    return 1, 0


def machines() -> int:
    """How many machines the processes are spread over, equally many on each."""
    size, _ = world()
    if size == 1:
        return 1
    if "WORLD_SIZE" in os.environ:
        count = size // _number("LOCAL_WORLD_SIZE", size)
    else:
        count = _number("SLURM_STEP_NUM_NODES", _number("SLURM_NNODES", 1))
    if count < 1 or size % count:
        raise UserError(f"{size} processes on {count} machines: start equally many on each")
    return count


def first_here() -> bool:
    """Whether this is its machine's first process."""
    name = "LOCAL_RANK" if "WORLD_SIZE" in os.environ else "SLURM_LOCALID"
    return world()[0] == 1 or _number(name) == 0


def environment() -> ClusterEnvironment | None:
    """How Lightning finds the other processes; None where it sees that itself. It would start MPI to ask for some."""
    if "WORLD_SIZE" in os.environ:
        return None
    if not _by_srun():
        from lightning_fabric.plugins.environments.lightning import LightningEnvironment

        return LightningEnvironment()
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

    # Lightning takes --ntasks alone for a mistake, since it doesn't look how many each machine has.
    os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(world()[0] // machines()))
    return SLURMEnvironment(auto_requeue=False)  # its requeueing resumes from checkpoints of its own


def from_rank_0(value: Any) -> Any:
    """What rank 0 holds, on every process; without others, `value` itself. Lightning goes on with this group."""
    size, rank = world()
    if size == 1:
        return value
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        where = environment()
        if where:
            os.environ.update(MASTER_ADDR=where.main_address, MASTER_PORT=str(where.main_port))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, rank=rank, world_size=size)
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _by_srun() -> bool:
    """If srun started this process as one of several: in a batch script outside srun, others would never come."""
    return "SLURM_STEP_ID" in os.environ and _number("SLURM_NTASKS", 1) > 1


def _number(name: str, default: int | None = None) -> int:
    value = os.environ.get(name)
    if value is None and default is not None:
        return default
    try:
        return int(value or "")
    except ValueError as e:
        raise UserError(
            f"the environment variable {name} is {value!r}, not a number; start with torchrun or srun"
        ) from e
