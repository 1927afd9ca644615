"""What could be tuned without target labels: the grids, and the criteria that choose in them.

Both are part of the plan, and so of its hash, before any target label is read. Higher is
better for every criterion.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

Shares = NDArray[np.float64]
"""Shape (m, K): class probabilities of target rows."""

#: By fix: the setting that is tried, and its values, the default among them.
GRIDS: Mapping[str, tuple[str, tuple[float, ...]]] = MappingProxyType(
    {
        "standardisation": ("pseudo_count", (4.0, 16.0, 256.0)),
        "coral": ("components", (32, 128, 256)),
        "linear_transport": ("components", (32, 128, 256)),
        "importance_weighting": ("ratio_exponent", (0.25, 0.5, 1.0)),
        "prototypes": ("prototypes", (5, 20, 80)),
    }
)


def certainty(probabilities: Shares) -> float:
    """Minus the mean entropy of the predictions, nats (Morerio et al. 2018)."""
    return -float(entr(probabilities).sum(axis=1).mean())


def information_maximisation(probabilities: Shares) -> float:
    """Entropy of the mean prediction minus the mean entropy, nats (Liang et al. 2020).

    Sure of each image and not of one class for all: certainty alone is content with that.
    """
    return float(entr(probabilities.mean(axis=0)).sum()) + certainty(probabilities)


#: To add one: a function of the probabilities of unlabelled target rows, and a line here.
VALIDATORS: Mapping[str, Callable[[Shares], float]] = MappingProxyType(
    {"information_maximisation": information_maximisation, "certainty": certainty}
)
DEFAULT = "information_maximisation"
