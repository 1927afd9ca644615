"""A study small enough for every test: generated images and an eight-feature backbone.

And its results as a later run would have left them: with digests that fit.
"""

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image

from cache import disk
from pipeline.data.images import Transform
from pipeline.features import backbones
from pipeline.features.engines import EngineChoice
from pipeline.features.extract import extract
from pipeline.results import read_set, write_set
from pipeline.study import Study
from pipeline.study_file import load_study

TORCH = EngineChoice(engine="torch", device="cpu", batch_size=4)


@dataclass(frozen=True)
class FileWeights:
    """Weights that simply lie in a file."""

    file: Path

    def __call__(self, *, download: bool) -> Path:
        return self.file


def tiny_network(state):
    """One convolution, pooled: built in no time."""
    import torch
    from torch import nn

    network = nn.Sequential(
        nn.Conv2d(3, 8, 8, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1)
    )
    network.load_state_dict({k: torch.as_tensor(v) for k, v in state.items()})
    return network


def install_tiny_backbone(monkeypatch, folder: Path) -> Path:
    """Put a backbone ``tiny`` into the table; returns its weights file."""
    import torch

    file = folder / "tiny.pth"
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 3, 8, 8, generator=rng)
    torch.save({"0.weight": weight, "0.bias": torch.ones(8)}, file)
    monkeypatch.setattr(backbones, "BACKBONES", table_with_tiny(file))
    return file


def deep_tiny():
    """Two stages, each convolution, BatchNorm and ReLU, then the mean: eight features."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(3, 6, 4, stride=4),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(1),
    )


def install_trainable_tiny(monkeypatch, folder: Path) -> Path:
    """The same with :func:`deep_tiny` as ``tiny``, and a cut: parts of it can be trained."""
    import torch

    from pipeline.finetune import networks

    def loaded(state):
        network = deep_tiny()
        network.load_state_dict(dict(state))
        return network

    def split(network):
        return torch.nn.Sequential(*network[:3]), torch.nn.Sequential(*network[3:])

    file = folder / "tiny.pth"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = deep_tiny()
        with torch.no_grad():  # running statistics that differ from a batch's
            network[1].bias += 0.5  # no image is all zero after the ReLU
            network[1].running_mean += 0.1
            network[4].running_var *= 0.7
    torch.save(network.state_dict(), file)
    cut = networks.Cut(where="after the first stage", split=split, first_block=("0", "1"))
    monkeypatch.setattr(backbones, "BACKBONES", table_with_tiny(file, loaded, {"1": 6}))
    monkeypatch.setattr(networks, "CUTS", MappingProxyType({**networks.CUTS, "tiny": cut}))
    return file


def table_with_tiny(file: Path, network=tiny_network, layers=MappingProxyType({"0": 8, "1": 8})):
    """The table of backbones and ``tiny``, whose weights are a file."""
    spec = backbones.Spec(
        dim=8,
        transform=Transform(size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        network=network,
        pretrained=FileWeights(file),
        layers=layers,
    )
    return MappingProxyType({**backbones.BACKBONES, "tiny": spec})


def write_images(folder: Path, count: int, *, seed: int = 0, shift: int = 0) -> Path:
    """Class folders ``a`` (dark) and ``b`` (bright) of 40 x 40 PNGs, two per patient."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        kind = "ab"[i % 2]
        (folder / kind).mkdir(parents=True, exist_ok=True)
        level = 90 + 60 * (i % 2) + shift
        pixels = np.clip(rng.normal(level, 25, (40, 40)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / kind / f"p{seed}{i // 4:03}_{i}.png")
    return folder


def edited(file: Path, changes: Mapping[str, str]) -> Study:
    """The study after texts of its file have been replaced by others."""
    for old, new in changes.items():
        text = file.read_text()
        assert old in text, old
        file.write_text(text.replace(old, new))
    return load_study(file)


def stored_tiny_study(
    folder: Path, monkeypatch, *, source: int = 40, target: int = 20, setting: str = ""
) -> Path:
    """A study file with the features of its images stored; its folder is the current one.

    ``setting`` is a line of its backbone.
    """
    install_tiny_backbone(monkeypatch, folder)
    monkeypatch.chdir(folder)
    file = write_tiny_study(folder, source=source, target=target)
    file.write_text(f"{file.read_text()}{setting}\n")
    extract(load_study(file), TORCH)
    return file


def write_tiny_study(folder: Path, *, source: int = 40, target: int = 20) -> Path:
    """Images of two hospitals and a study file that uses the backbone ``tiny``."""
    write_images(folder / "here", source, seed=1)
    write_images(folder / "there", target, seed=2, shift=20)
    file = folder / "study.toml"
    file.write_text(
        'name = "tiny"\n[source]\npath = "here"\ngroup = \'^(p\\d+)\'\n'
        "[target.there]\npath = \"there\"\ngroup = '^(p\\d+)'\n"
        '[store]\npath = "features"\n[backbone.tiny]\n'
    )
    return file


def rewrite(
    file: Path,
    values: dict | None = None,
    files: dict[str, bytes] | None = None,
    *,
    without: str = "/",
):
    """Other values in a record, other files in its set, or none that end so."""
    found = read_set(file, "stage")
    kept = {name: digest for name, digest in found.digests.items() if not name.endswith(without)}
    write_set(file, found.record | (values or {}), files or {}, unchanged=kept)


def flip(file: Path, place: int) -> None:
    """Turn one bit of a file round."""
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def record_of(file: Path) -> dict:
    """The values of a record."""
    return read_set(file, "stage").record


def forbid_writing(monkeypatch, folder: Path) -> None:
    """A folder that may only be read, also for root."""
    for name in ("open_new", "replace", "unlink", "make_dir"):
        real = getattr(disk, name)

        def guarded(path, *more, real=real, name=name):
            inside = folder.resolve() in (path.resolve(), *path.resolve().parents)
            if inside and not (name == "make_dir" and path.is_dir()):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return real(path, *more)

        monkeypatch.setattr(disk, name, guarded)
