"""The fixes that never see a target label, in one table.

To add one: write ``adapt(source, target, rng) -> Predictor`` and one line in ``FIXES``.
The contract tests run over the table.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr, softmax

from pipeline.errors import UnknownNameError
from pipeline.heads.blocks import times
from pipeline.heads.logistic import Path, solve_path
from pipeline.shift.fixes.adaptation import Fix, Parts, Predictor, Rows, Source
from pipeline.shift.fixes.alignment import coral, erased_domain, linear_transport, standardisation
from pipeline.shift.fixes.ensembles import bagging, baggings, head_ensemble, seed_ensemble
from pipeline.shift.fixes.label_shift import balanced_standardisation, prior_shift
from pipeline.shift.fixes.transport import optional_fixes


def source_only(source: Source, _target: Rows, _rng: np.random.Generator) -> Predictor:
    """F0: the head as it left the source, the baseline of every other row.

    Args:
        source: The labelled domain.
    """
    return Predictor(transform=source.standardise, score=source.head.predict_proba)


def importance_weighting(source: Source, target: Rows, rng: np.random.Generator) -> Predictor:
    """F6: weight source rows by how much they look like the target (Shimodaira 2000).

    The density ratio is a logistic domain classifier's odds, flattened by an exponent and
    clipped. It acts through the penalised head only: an unregularised one would ignore
    the weights (Byrd and Lipton 2019).

    Args:
        source: The labelled domain.
        target: Shape (m, d), raw.
        rng: Not used.

    Returns:
        The predictor; its notes hold the effective number of source rows.
    """
    return importance_weightings(source, target, [np.arange(len(target))], [rng])[0]


def importance_weightings(
    source: Source, target: Rows, parts: Parts, _rngs: Sequence[np.random.Generator]
) -> list[Predictor]:
    """Adapt :func:`importance_weighting` to several parts of a target at once.

    The parts differ in the weights of rows alone, so their domain classifiers are one
    batch and their heads another. Results equal those of one part at a time up to the
    solver's tolerance, 1e-5 of the coefficients.

    Args:
        source: The labelled domain.
        target: Shape (m, d), raw.
        parts: V sets of rows of the target.

    Returns:
        One predictor for each part.
    """
    rows = np.vstack([source.standard, source.standardise(target)]).astype(np.float32)
    n = len(source.standard)
    balance = np.zeros((len(parts), len(rows)))
    for weights, part in zip(balance, parts, strict=True):
        weights[:n] = (n + len(part)) / (2 * n)
        weights[n + part] = (n + len(part)) / (2 * len(part))
    classifiers = solve_path(
        rows,
        np.repeat([0, 1], [n, len(rows) - n]),
        C=np.full(len(parts), source.settings.inverse_penalty),
        weights=balance,
    )
    scores = times(rows[:n], classifiers.coef[:, 0].T) + classifiers.intercept[:, 0]
    ratios = np.exp(scores.T) ** source.settings.ratio_exponent
    limit = np.quantile(ratios, source.settings.ratio_clip, axis=1, keepdims=True)
    ratios = np.minimum(ratios, limit)
    ratios /= ratios.mean(axis=1, keepdims=True)
    heads = source.weighted_heads(ratios)
    return [
        Predictor(
            transform=source.standardise,
            score=_only(heads, v),
            notes={"effective_rows": float(ratio.sum() ** 2 / (ratio**2).sum())},
        )
        for v, ratio in enumerate(ratios)
    ]


def _only(heads: Path, v: int) -> Callable[[Rows], NDArray[np.float64]]:
    head = heads.some(slice(v, v + 1))
    return lambda rows: head.proba(rows)[0]


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
        "seed_ensemble": seed_ensemble,
        "head_ensemble": head_ensemble,
    }
)

#: Fixes that look at no row of the target and, unlike bagging, draw nothing by the seed of the
#: cut: one predictor serves every half and seed.
UNADAPTED = frozenset({"source_only", "seed_ensemble", "head_ensemble"})

#: Fixes that adapt to several parts of a target at once, which is faster than one by one.
TOGETHER: Mapping[
    str, Callable[[Source, Rows, Parts, Sequence[np.random.Generator]], list[Predictor]]
] = MappingProxyType({"importance_weighting": importance_weightings, "bagging": baggings})


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
