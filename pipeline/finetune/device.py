"""Where and how a loop computes: device, precision, randomness, memory."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.errors import EngineError
from pipeline.finetune.settings import LoopSettings
from pipeline.text.counts import counted


@contextmanager
def surroundings(settings: LoopSettings) -> Iterator[None]:
    """Everything process-wide that a training needs, put back at the end.

    Torch's generators are the caller's again afterwards; cuDNN takes deterministic
    algorithms, and TF32 only where it was asked for (it would use it unasked).

    Raises:
        EngineError: No such device, a precision it does not have, out of memory, or one
            image alone in a step, for a BatchNorm that needs more.
    """
    device = torch.device(settings.device)
    on_cuda = device.type == "cuda"
    if on_cuda and not torch.cuda.is_available():
        raise EngineError("torch sees no CUDA device here; use --device cpu")
    if settings.precision != "fp32" and not on_cuda:
        raise EngineError(
            f"{settings.precision} is a precision of CUDA devices, not of {device.type}: use fp32"
        )
    tf32 = settings.precision == "tf32"
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, tf32
    try:
        with (
            named_errors(settings.device, settings.batch_size),
            torch.random.fork_rng([device] if on_cuda else []),
            torch.backends.cudnn.flags(
                enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32
            ),
        ):
            yield
    finally:
        matmul.allow_tf32 = before


@contextmanager
def named_errors(device: str, batch_size: int) -> Iterator[None]:
    """Turn what torch says of a batch that does not fit into what can be done about it.

    Raises:
        EngineError: Out of memory, or one image alone in a step, for a BatchNorm that
            needs more.
    """
    try:
        yield
    except torch.OutOfMemoryError as cause:
        raise EngineError(_no_memory(device, batch_size)) from cause
    except ValueError as cause:
        if "more than 1 value per channel" not in str(cause):
            raise
        raise EngineError(
            "a step had one image alone for a BatchNorm that needs more: with another --batch-size "
            f"than {batch_size}, or fewer processes, the last step of an epoch has more"
        ) from cause
    except RuntimeError as cause:
        if "allocate memory" not in str(cause):
            raise
        raise EngineError(_no_memory(device, batch_size)) from cause  # how torch says it of a CPU


def _no_memory(device: str, size: int) -> str:
    hint = f"--batch-size {size // 2}" if size > 1 else "a smaller --image-size"
    return f"{device} is out of memory with {counted(size, 'image')} a step; try {hint}"


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the generators that a step on the device draws from, and no others.

    ``torch.manual_seed`` would note a stack trace for each device that is not there,
    which takes longer than the seeding.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def autocast(settings: LoopSettings) -> torch.autocast:
    """Mixed precision where it was asked for."""
    kind = torch.device(settings.device).type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=settings.precision == "bf16")


def peak_memory(device: str) -> int | None:
    """Most bytes used so far: of tensors on CUDA, else of this process; None: nobody can say."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
