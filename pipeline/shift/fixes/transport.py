"""Fixes that skada and POT provide, where the ``da`` extra is installed.

``import skada`` switches on scikit-learn's metadata routing for the whole process. Here
it is on only while skada runs, and then set back to what it was.
"""

import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from pipeline.shift.fixes.adaptation import Fix, Predictor, Rows, Source


@contextmanager
def skada_routing() -> Iterator[Any]:
    """Yield the skada module, with the global setting it needs set back afterwards."""
    before = sklearn.get_config()["enable_metadata_routing"]
    try:
        skada = importlib.import_module("skada")
        sklearn.set_config(enable_metadata_routing=True)
        yield skada
    finally:
        sklearn.set_config(enable_metadata_routing=before)


def subspace_alignment(source: Source, target: Rows, _rng: np.random.Generator) -> Predictor:
    """F4: turn the source's principal axes into the target's (Fernando et al. 2013).

    Args:
        source: The labelled domain.
        target: Shape (m, d), raw.
    """
    count = min(source.settings.components, *target.shape)
    return _fitted("SubspaceAlignmentAdapter", {"n_components": count}, source, target)


def sinkhorn_transport(source: Source, target: Rows, _rng: np.random.Generator) -> Predictor:
    """F5: carry source rows over by entropic optimal transport (Courty 2017).

    Costs are divided by their median: without it the iteration does not converge once
    features are many. skada cannot do that for the class-regularised variant.

    Args:
        source: The labelled domain.
        target: Shape (m, d), raw.
    """
    options = {"norm": "median", "reg_e": 0.1}
    return _fitted("EntropicOTMappingAdapter", options, source, target)


def optional_fixes() -> Mapping[str, Fix]:
    """Return F4 and F5 if skada and POT are installed, else nothing."""
    installed = all(importlib.util.find_spec(name) for name in ("skada", "ot"))
    return _DA_FIXES if installed else MappingProxyType({})


_DA_FIXES: Mapping[str, Fix] = MappingProxyType(
    {"subspace_alignment": subspace_alignment, "sinkhorn_transport": sinkhorn_transport}
)


def _fitted(adapter: str, options: Mapping[str, Any], source: Source, target: Rows) -> Predictor:
    rows = np.vstack([source.standard, source.standardise(target)])
    # skada's convention: source domain 1, target domain -2, a target row has no label (-1).
    domain = np.repeat([1, -2], [len(source.standard), len(target)])
    labels = np.append(source.labels, np.full(len(target), -1))
    with skada_routing() as skada:
        head = LogisticRegression(C=source.settings.inverse_penalty, max_iter=2000)
        pipeline = skada.make_da_pipeline(
            getattr(skada, adapter)(**options), head.set_fit_request(sample_weight=True)
        )
        pipeline.fit(rows, labels, sample_domain=domain)

    def score(standardised: Rows) -> NDArray[np.float64]:
        with skada_routing():
            return np.asarray(pipeline.predict_proba(standardised), dtype=np.float64)

    return Predictor(transform=source.standardise, score=score)
