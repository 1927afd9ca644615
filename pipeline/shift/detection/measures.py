"""The measures of domain shift: one pair of domains in, statistics per relabelling out.

To add a measure, write a function here and one line in a table; what is done with its
statistics (p-values, refusals, controls) is the same for all and lives in ``detect``.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from pipeline.shift.cohorts import Comparison
from pipeline.two_samples.gaussians import frechet_draws
from pipeline.two_samples.kernels import aggregate, global_scale, kernel_draws, neighbour_draws
from pipeline.two_samples.marginals import chi2_of_classes, ks_of_scores, sliced_wasserstein
from pipeline.two_samples.ridge import ridge_draws

#: Statistics by name, each of shape (B + 1,), the observed value first.
Draws = Mapping[str, NDArray[np.float64]]
Measure = Callable[[Comparison], Draws]


def _scores(pair: Comparison) -> Draws:
    probabilities = pair.pooled.probabilities
    return {
        "bbsd_ks": ks_of_scores(probabilities, pair.labels),
        "bbsd_hard": chi2_of_classes(probabilities, pair.labels),
    }


def _ridge(pair: Comparison) -> Draws:
    draws = ridge_draws(pair.pooled.features, pair.labels, pair.folds, pair.where)
    return {"ridge_c2st": draws.auc, "proxy_a_distance": draws.a_distance}


def _kernels(pair: Comparison) -> Draws:
    draws = kernel_draws(global_scale(pair.pooled.features), pair.labels, pair.where)
    return {"mmd_aggregated": aggregate(draws.mmd), "kid": draws.kid, "energy": draws.energy}


def _neighbours(pair: Comparison) -> Draws:
    return {"neighbours": neighbour_draws(global_scale(pair.pooled.features), pair.labels)}


def _frechet(pair: Comparison) -> Draws:
    return {"frechet": frechet_draws(global_scale(pair.pooled.features), pair.labels)}


def _sliced(pair: Comparison) -> Draws:
    distances = sliced_wasserstein(global_scale(pair.pooled.features), pair.labels, pair.seed)
    return {
        "sliced_wasserstein": distances.mean(axis=0),
        "sliced_wasserstein_max": distances.max(axis=0),
    }


#: Cheap for each relabelling.
FAST: Mapping[str, Measure] = MappingProxyType(
    {"scores": _scores, "ridge": _ridge, "kernels": _kernels, "neighbours": _neighbours}
)
#: Redo much work for each relabelling.
SLOW: Mapping[str, Measure] = MappingProxyType({"frechet": _frechet, "sliced": _sliced})
#: Refused in domains with few patients, and what they would have returned.
NEEDS_PATIENTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "ridge": ("ridge_c2st", "proxy_a_distance"),
        "kernels": ("mmd_aggregated", "kid", "energy"),
    }
)
#: Repeated inside each class: what differs there is not explained by the class mix.
CONDITIONAL = ("ridge_c2st", "mmd_aggregated")
