"""What a bug report needs to know of this machine: versions, devices, engines, weights."""

import importlib.util
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = (
    *("headrace", "torch", "torchvision", "openvino", "timm"),
    *("h5py", "scikit-learn", "pillow"),
)


def examine(store: Path) -> dict[str, str]:
    """Name and finding of each.

    Args:
        store: Folder of the stores that commands would use.
    """
    import torch

    from pipeline.features.backbones import BACKBONES

    return {
        "python": platform.python_version(),
        "cpu": f"{os.cpu_count()} cores",
        **{package: _version(package) for package in _PACKAGES},
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "engine": "openvino" if importlib.util.find_spec("openvino") else "torch",
        "stores": str(store.resolve()),
        **{
            f"weights of {name}": str(
                spec.pretrained(download=False) or "not found; downloaded when needed"
            )
            for name, spec in BACKBONES.items()
        },
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
