"""The line between two networks is straight, also through their BatchNorms."""

import torch
from torch import nn

from pipeline.finetune.interpolate import fold_norms, interpolate


def normed(seed):
    """A network whose BatchNorm has seen something."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    with torch.no_grad():
        network[1].running_mean.normal_()
        network[1].running_var.uniform_(1e-4, 2)
        network[1].weight.normal_()
        network[1].bias.normal_()
    return network.eval()


def test_folding_a_norm_changes_no_output():
    """Statistics become scale and shift, and the network gives what it gave."""
    images, network, other = torch.randn(2, 3, 8, 8), normed(0), normed(1)
    expected = network(images)
    other.load_state_dict(fold_norms(network.state_dict(), network))
    torch.testing.assert_close(other(images), expected)


def test_a_norm_between_two_models_is_between_them():
    """Also where variances differ a thousandfold: halfway is the mean of the two outputs."""
    first, second = normed(0), normed(0)
    with torch.no_grad():
        second[1].running_var.mul_(1e-3)
    norms = [nn.Sequential(network[1]) for network in (first, second)]
    states = [fold_norms(norm.state_dict(), norm) for norm in norms]
    x = torch.randn(2, 4, 5, 5)
    expected = sum(norm(x) for norm in norms) / 2
    norms[0].load_state_dict(interpolate(*states, 0.5))
    torch.testing.assert_close(norms[0](x), expected)


def test_the_line_between_two_models_is_straight():
    """Ends are the models themselves; counters are the second's."""
    first = {"w": torch.tensor([0.0, 2.0]), "n": torch.tensor(3)}
    second = {"w": torch.tensor([1.0, 4.0]), "n": torch.tensor(5)}
    assert torch.equal(interpolate(first, second, 0.0)["w"], first["w"])
    assert torch.equal(interpolate(first, second, 1.0)["w"], second["w"])
    middle = interpolate(first, second, 0.25)
    torch.testing.assert_close(middle["w"], torch.tensor([0.25, 2.5]))
    assert middle["n"] == 5
