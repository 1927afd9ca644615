"""What torch is told before a network runs on a device, and what is written down of both."""

import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


def set_precision(precision: str) -> None:
    """Say explicitly what torch leaves to defaults: cuDNN would use TF32 unasked."""
    import torch

    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


def after(done: Any, out: "torch.Tensor") -> NDArray[np.float32]:
    """Wait for the copy of one batch; later batches go on meanwhile."""
    done.synchronize()
    features: NDArray[np.float32] = out.numpy()
    return features


def device_name(device: str) -> str:
    """How the device is called in provenances and messages."""
    if device == "cuda":
        import torch

        return f"cuda ({torch.cuda.get_device_name()})"
    return f"cpu ({platform.machine()})"


def provenance(engine: str, device: str, batch_size: int) -> dict[str, str]:
    """What every engine says of itself; versions of what has a say in the numbers."""
    import PIL

    return {
        "engine": engine,
        "device": device,
        "batch_size": str(batch_size),
        "torch": version("torch"),
        "pillow": PIL.__version__,
    }
