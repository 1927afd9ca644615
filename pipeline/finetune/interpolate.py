"""WiSE-FT: models on the straight line between a linear probe and a fine-tuned network.

Wortsman et al. 2022, whose networks have no BatchNorm. Where there is one it is interpolated
as the scale and shift that it comes to, not as weights and statistics apart: variances of
radiographs can be a thousandth of those of ImageNet, and a tenth of the latter in the mean
switches channels off (on chest X-rays a network nine tenths of the way then fell from 94 to
61 % on validation). With alpha 0 the result is the first model, with 1 the second.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pipeline.finetune.networks import BATCH_NORMS

#: Share of the way from the first model to the second.
ALPHAS = tuple(step / 10 for step in range(11))


def fold_norms(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The same function, with every BatchNorm's statistics taken into its scale and shift.

    Args:
        state: Of the network.
        network: Says which modules are BatchNorms, and their epsilon.
    """
    folded = dict(state)
    for name, module in network.named_modules():
        if isinstance(module, BATCH_NORMS) and module.affine:
            weight, bias = folded[f"{name}.weight"], folded[f"{name}.bias"]
            mean, variance = folded[f"{name}.running_mean"], folded[f"{name}.running_var"]
            scale = weight / (variance + module.eps).sqrt()
            folded[f"{name}.weight"], folded[f"{name}.bias"] = scale, bias - mean * scale
            folded[f"{name}.running_mean"] = torch.zeros_like(mean)
            folded[f"{name}.running_var"] = torch.full_like(variance, 1 - module.eps)
    return folded


def interpolate(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """State at ``alpha`` of the way, 0 to 1; counters, which are integers, are the second's."""
    return {
        name: (1 - alpha) * tensor + alpha * second[name]
        if tensor.is_floating_point()
        else second[name]
        for name, tensor in first.items()
    }
