"""Several processes that train one model, as ``torchrun`` starts them; no engine of our own.

Each process takes its share of every global batch, DistributedDataParallel averages the
gradients, and rank 0 alone writes. One process is a group of one: nothing is special-cased
by the loop. Order and augmentation do not depend on the number of processes; dropout does,
because each process draws its own masks. BatchNorm that trains sees the images of its own
process (no synchronisation), and the running statistics kept are those of rank 0.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.errors import EngineError


@dataclass(frozen=True, kw_only=True)
class Group:
    """The processes that train together.

    Attributes:
        rank: This process, from 0.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    def share(self, rows: NDArray[np.intp]) -> tuple[NDArray[np.intp], float]:
        """This process's rows of a global batch, and the factor for their mean loss.

        DistributedDataParallel takes the plain mean of the gradients, which is that of
        the global batch only where shares are equal: with n_r of n rows on rank r of W,
            gradient = (1/W) sum_r (W n_r / n) gradient(mean loss of the n_r rows).
        A process without a row must still take part in the step, so it repeats the first
        row with factor 0.
        """
        own = np.array_split(rows, self.size)[self.rank]
        factor = self.size * len(own) / len(rows)
        return (own, factor) if len(own) else (rows[:1], 0.0)


def group() -> Group:
    """The group this process is in; of one, where nothing was started."""
    if not distributed.is_initialized():
        return Group()
    return Group(rank=distributed.get_rank(), size=distributed.get_world_size())


@contextmanager
def joined(device: str) -> Iterator[str]:
    """Join the group that ``torchrun`` describes in the environment, and leave it at the end.

    Args:
        device: ``cpu`` or ``cuda``.

    Yields:
        The device of this process: ``cuda:<local rank>`` on CUDA, else ``device``.

    Raises:
        EngineError: More processes on this machine than it has GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        yield device
        return
    on_cuda = torch.device(device).type == "cuda"
    own = f"cuda:{_own_gpu()}" if on_cuda else device
    distributed.init_process_group("nccl" if on_cuda else "gloo")
    try:
        yield own
    finally:
        distributed.destroy_process_group()


def _own_gpu() -> int:
    local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= there:
        raise EngineError(
            f"process {local + 1} on a machine with {there} CUDA devices: start torchrun with "
            f"--nproc-per-node {there}"
        )
    torch.cuda.set_device(local)
    return local


def wrapped(model: nn.Module, device: torch.device) -> nn.Module:
    """The model as the steps call it; all processes begin with the weights of rank 0."""
    if group().size == 1:
        return model
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids)


def summed(values: Tensor) -> Tensor:
    """Sum over all processes, in place, the same on each."""
    if group().size > 1:
        distributed.all_reduce(values)
    return values


def take_buffers_of_first(model: nn.Module) -> None:
    """Give all processes the running statistics of rank 0: one model is evaluated and kept."""
    if group().size > 1:
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)


def check_same(value: int, device: torch.device, what: str) -> None:
    """Stop when processes see different things, before they wait for each other forever.

    Args:
        value: Of 63 bits.
        device: Where the group communicates.
        what: What it describes, for the message.

    Raises:
        EngineError: They have different values.
    """
    if group().size == 1:
        return
    own = torch.tensor(value, dtype=torch.int64, device=device)
    low, high = own.clone(), own.clone()
    distributed.all_reduce(low, distributed.ReduceOp.MIN)
    distributed.all_reduce(high, distributed.ReduceOp.MAX)
    if not torch.equal(low, high):
        raise EngineError(
            f"the processes see different {what}: all machines need the same data and one shared "
            "results folder"
        )
