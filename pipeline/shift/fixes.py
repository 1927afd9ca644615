"""The fixes that never see a target label, in one table.

To add one: write ``adapt(source, target, rng) -> Predictor`` and one line in ``FIXES``.
The contract tests run over the table.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr, softmax

from pipeline.errors import UnknownNameError
from pipeline.shift.adaptation import Fix, Predictor, Rows, Source
from pipeline.shift.alignment import coral, erased_domain, linear_transport, standardisation
from pipeline.shift.label_shift import balanced_standardisation, prior_shift
from pipeline.shift.transport import optional_fixes


def source_only(source: Source, _target: Rows, _rng: np.random.Generator) -> Predictor:
    """F0: the head as it left the source, the baseline of every other row.

    Args:
        source: The labelled domain.
    """
    return Predictor(transform=source.standardise, score=source.head.predict_proba)


def importance_weighting(source: Source, target: Rows, _rng: np.random.Generator) -> Predictor:
    """F6: weight source rows by how much they look like the target (Shimodaira 2000).

    The density ratio is a logistic domain classifier's odds, flattened by an exponent and
    clipped. It acts through the penalised head only: an unregularised one would ignore
    the weights (Byrd and Lipton 2019).

    Args:
        source: The labelled domain.
        target: Shape (m, d), raw.

    Returns:
        The predictor; its notes hold the effective number of source rows.
    """
    rows_t = source.standardise(target)
    domain = np.repeat([0, 1], [len(source.standard), len(rows_t)])
    balance = len(domain) / (2 * np.bincount(domain))
    classifier = source.fit(
        np.vstack([source.standard, rows_t]), labels=domain, weights=balance[domain]
    )
    odds = np.exp(classifier.decision_function(source.standard))
    weights = odds**source.settings.ratio_exponent
    weights = np.minimum(weights, np.quantile(weights, source.settings.ratio_clip))
    weights /= weights.mean()
    return Predictor(
        transform=source.standardise,
        score=source.fit(source.standard, weights=weights).predict_proba,
        notes={"effective_rows": float(weights.sum() ** 2 / (weights**2).sum())},
    )


def prototypes(source: Source, target: Rows, _rng: np.random.Generator) -> Predictor:
    """F8: replace the head by the mean of its most confident target rows (T3A).

    Each class keeps its own weight vector and the M target rows it is surest of, all of
    length 1; a row is scored by its inner product with their mean (Iwasawa 2021).

    Args:
        source: The labelled domain.
        target: Shape (m, d), raw.
    """
    rows = source.standardise(target)
    probabilities = source.head.predict_proba(rows)
    doubt = entr(probabilities).sum(axis=1)
    called = probabilities.argmax(axis=1)
    centres = []
    for k, weight in enumerate(_class_weights(source)):
        members = np.flatnonzero(called == k)
        surest = members[np.argsort(doubt[members], kind="stable")]
        support = np.vstack([weight[None], rows[surest[: source.settings.prototypes]]])
        centres.append(_unit(_unit(support).mean(axis=0)))
    directions = np.stack(centres).T
    return Predictor(
        transform=source.standardise, score=lambda z: np.asarray(softmax(z @ directions, axis=1))
    )


def bagging(source: Source, _target: Rows, rng: np.random.Generator) -> Predictor:
    """F11: average heads that were each fitted to a bootstrap of the source's patients.

    Args:
        source: The labelled domain.
        rng: Source of the bootstraps.
    """
    patients = np.unique(source.groups, return_inverse=True)[1]
    n = int(patients.max()) + 1
    counts = rng.multinomial(n, np.full(n, 1 / n), size=source.settings.bags)
    heads = source.weighted_heads(counts[:, patients])
    return Predictor(
        transform=source.standardise, score=lambda rows: np.mean(heads.proba(rows), axis=0)
    )


#: Every fix that needs nothing beyond headrace's own dependencies.
FIXES: Mapping[str, Fix] = MappingProxyType(
    {
        "source_only": source_only,
        "standardisation": standardisation,
        "balanced_standardisation": balanced_standardisation,
        "coral": coral,
        "linear_transport": linear_transport,
        "importance_weighting": importance_weighting,
        "prior_shift": prior_shift,
        "prototypes": prototypes,
        "erased_domain": erased_domain,
        "bagging": bagging,
    }
)


def fix_named(name: str) -> Fix:
    """Return a fix of :data:`FIXES`, or of the ``da`` extra if it is installed.

    Args:
        name: Name in the table.

    Raises:
        UnknownNameError: No such fix; the message lists those that can be had here.
    """
    known = FIXES if name in FIXES else {**FIXES, **optional_fixes()}
    if name not in known:
        raise UnknownNameError("fix", name, known)
    return known[name]


def _class_weights(source: Source) -> NDArray[np.float64]:
    """Weight vector of each class, shape (K, d); scikit-learn keeps one of two."""
    coefficients = source.head.coef_
    return np.vstack([-coefficients, coefficients]) if len(coefficients) == 1 else coefficients


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.where(length > 0, length, 1))
