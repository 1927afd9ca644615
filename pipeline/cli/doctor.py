"""What is here: versions, devices, engines, and which weights can be had."""

import importlib.util
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.backbones import BACKBONES

_PACKAGES = (
    "headrace",
    "torch",
    "torchvision",
    "openvino",
    "timm",
    "h5py",
    "scikit-learn",
    "pillow",
)


def examine() -> dict[str, str]:
    """Name and finding, in the order in which a person would ask."""
    found = {"python": platform.python_version(), "cpu": f"{os.cpu_count()} cores"}
    found |= {package: _version(package) for package in _PACKAGES}
    found["cuda"] = _cuda()
    found["engine"] = "openvino" if importlib.util.find_spec("openvino") else "torch"
    found["stores"] = str(Path(os.environ.get("HEADRACE_FEATURES") or "features").resolve())
    found |= {
        f"weights of {name}": str(spec.pretrained.path() or "not here; fetched when asked for")
        for name, spec in BACKBONES.items()
    }
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cuda() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
