"""A backbone ``tiny`` with BatchNorm and a cut: a part of it can be trained in no time."""

from pathlib import Path
from types import MappingProxyType

from pipeline.features import backbones
from pipeline.finetune import networks
from tests.tiny import table_with_tiny


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


def _network(state):
    network = deep_tiny()
    network.load_state_dict(dict(state))
    return network


def _split(network):
    from torch import nn

    return nn.Sequential(*network[:3]), nn.Sequential(*network[3:])


def install_trainable_tiny(monkeypatch, folder: Path) -> Path:
    """Put ``tiny`` into the tables of backbones and cuts; returns its weights file."""
    import torch

    file = folder / "tiny.pth"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = deep_tiny()
        with torch.no_grad():  # running statistics that differ from a batch's
            network[1].bias += 0.5  # no image is all zero after the ReLU
            network[1].running_mean += 0.1
            network[4].running_var *= 0.7
    torch.save(network.state_dict(), file)
    table = table_with_tiny(file, _network, {"1": 6})
    cut = networks.Cut(where="after the first stage", split=_split, first_block=("0", "1"))
    monkeypatch.setattr(backbones, "BACKBONES", table)
    monkeypatch.setattr(networks, "CUTS", MappingProxyType({**networks.CUTS, "tiny": cut}))
    return file
