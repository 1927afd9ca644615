"""How a training uses the machine: device, precision, randomness, memory, processes."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from pipeline.errors import EngineError
from pipeline.finetune.methods import TrainingSettings
from pipeline.words import counted


@contextmanager
def torch_settings(settings: TrainingSettings) -> Iterator[None]:
    """Set everything process-wide that a training needs, and restore it at the end.

    TF32 is used only if requested; by default cuDNN would use it.

    Raises:
        EngineError: A precision that the device does not have; see also :func:`batch_errors`.
    """
    device, tf32 = torch.device(settings.device), settings.precision == "tf32"
    on_cuda, repeatable = device.type == "cuda", settings.deterministic
    if tf32 and not on_cuda:
        raise EngineError(f"tf32 is a precision of CUDA devices, not of {device.type}: use fp32")
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    with ExitStack() as stack:
        stack.enter_context(batch_errors(settings.device, settings.batch_size))
        stack.enter_context(torch.random.fork_rng([device] if on_cuda else []))
        stack.enter_context(
            cudnn.flags(enabled=True, benchmark=False, deterministic=repeatable, allow_tf32=tf32)
        )
        stack.callback(setattr, matmul, "allow_tf32", matmul.allow_tf32)
        matmul.allow_tf32 = tf32
        if on_cuda and repeatable:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
            stack.callback(
                torch.use_deterministic_algorithms,
                torch.are_deterministic_algorithms_enabled(),
                warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
            )
            # A kernel of torch that has no repeatable algorithm warns and is used.
            torch.use_deterministic_algorithms(mode=True, warn_only=True)
        yield


@contextmanager
def batch_errors(device: str, batch_size: int) -> Iterator[None]:
    """Turn torch's errors about a batch into errors that say what to do.

    Raises:
        EngineError: Out of memory, or a single image for a BatchNorm.
    """
    try:
        yield
    except ValueError as cause:
        if "more than 1 value per channel" not in str(cause):
            raise
        raise EngineError(
            "a step had one image alone for a BatchNorm that needs more: with another --batch-size "
            f"than {batch_size}, or fewer processes, the last step of an epoch has more"
        ) from cause
    except RuntimeError as cause:
        # torch's texts for a CPU, and for CUDA.
        if not any(text in str(cause) for text in ("allocate memory", "out of memory")):
            raise
        size = f"--batch-size {batch_size // 2}" if batch_size > 1 else "a smaller --image-size"
        raise EngineError(
            f"{device} is out of memory with {counted(batch_size, 'image')} a step; try {size}"
        ) from cause


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the generators that a step on the device draws from, and no others.

    ``torch.manual_seed`` would note a stack trace for each device that is not there,
    which takes longer than the seeding.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def autocast(settings: TrainingSettings) -> torch.autocast:
    """Matrix products and convolutions in bf16 if requested, on any device."""
    kind = torch.device(settings.device).type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=settings.precision == "bf16")


# Several processes that train one model, as ``torchrun`` starts them.


@dataclass(frozen=True, kw_only=True)
class Group:
    """The processes that train together: the rank of this one, from 0, and their number."""

    rank: int = 0
    size: int = 1

    def share(self, rows: NDArray[np.intp]) -> tuple[NDArray[np.intp], float]:
        """This process's rows of a global batch, and the factor for their mean loss.

        DistributedDataParallel averages the gradients, which gives the gradient of the global
        batch only if all shares are equal. With n_r of n rows on rank r of W,
            gradient = (1/W) sum_r (W n_r / n) gradient(mean loss of the n_r rows).
        A process without rows must still take part in the step, so it repeats the first row
        with factor 0.
        """
        share = np.array_split(rows, self.size)[self.rank]
        factor = self.size * len(share) / len(rows)
        return (share, factor) if len(share) else (rows[:1], 0.0)


def group() -> Group:
    """The group of this process; a group of one if none was started."""
    if not distributed.is_initialized():
        return Group()
    return Group(rank=distributed.get_rank(), size=distributed.get_world_size())


@contextmanager
def process_group(device: str, name: str = "") -> Iterator[str]:
    """Join the group that ``torchrun`` describes in the environment, and leave it at the end.

    Each ``name`` is a group of its own: a process that starts a second group while another is
    still in the first would otherwise find the addresses of the first.

    Yields:
        The device of this process: ``cuda:<local rank>`` on CUDA, else ``cpu``.

    Raises:
        EngineError: This machine has fewer GPUs than processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        yield device
        return
    on_cuda = torch.device(device).type == "cuda"
    device = f"cuda:{_local_gpu()}" if on_cuda else device
    store, rank, size = next(rendezvous("env://"))
    store = distributed.PrefixStore(name, store)  # type: ignore[attr-defined]
    backend = "nccl" if on_cuda else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def _local_gpu() -> int:
    local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= count:
        raise EngineError(
            f"process {local + 1} on a machine with {count} CUDA devices: start torchrun with "
            f"--nproc-per-node {count}"
        )
    torch.cuda.set_device(local)
    return local


def data_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """The model that the steps call; all processes begin with the weights of rank 0."""
    if group().size == 1:
        return model
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids)


def sum_over_processes(values: Tensor) -> Tensor:
    """Sum over all processes, in place; each process gets the same."""
    if group().size > 1:
        distributed.all_reduce(values)
    return values


def broadcast_buffers(model: nn.Module) -> None:
    """Give all processes the running statistics of rank 0, so that all have the same model."""
    if group().size > 1:
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)


def barrier(device: str) -> None:
    """Wait until all processes of the group have reached this point."""
    sum_over_processes(torch.zeros(1, device=device)).item()  # NCCL alone would not stop the host


def check_same(text: str, device: torch.device, what: str) -> None:
    """Stop if the processes see different data, before they wait for each other forever.

    Raises:
        EngineError: Their texts differ; the message names what they describe.
    """
    if group().size == 1:
        return
    value = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
    ends = torch.tensor([value, -value], dtype=torch.int64, device=device)
    distributed.all_reduce(ends, distributed.ReduceOp.MAX)
    if ends.sum().item() != 0:  # the largest, and minus the smallest
        raise EngineError(
            f"the processes see different {what}: all machines need the same data and one shared "
            "results folder"
        )
