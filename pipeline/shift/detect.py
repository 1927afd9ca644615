"""Do the source and a target differ? Three two-sample tests by permutation of patients.

The tests compare the scores of a linear head (BBSD-KS), the predictions of a domain classifier
on the features (C2ST), and distances between features (MMD). The domains of whole patients are
permuted: permuting single images would reject too often, because images of a patient resemble
each other.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import euclidean_distances

from pipeline.data.domain import DomainData
from pipeline.errors import StudyError
from pipeline.evaluation.intervals import Interval
from pipeline.evaluation.paired_tests import holm
from pipeline.evaluation.separability import (
    patient_units,
    permutation_p,
    permuted_labels,
    separability,
)
from pipeline.words import counted

#: Names of the tests; Holm's correction runs over them.
TESTS = ("bbsd_ks", "ridge_c2st", "mmd_aggregated")
#: Permutations of each test.
DRAWS = 999
#: Level of the tests.
LEVEL = 0.05
#: Adjusted p-values: at most the first, the images differ; above the second, there is no hint.
_SURE, _NO_HINT = 0.02, 0.2
#: Fewest permutations: with fewer, no p-value, at least 1 / (draws + 1), reaches the level.
FEWEST_DRAWS = math.ceil(1 / LEVEL) - 1
#: With fewer patients in a domain, the tests of the features are refused.
_NEEDED_PATIENTS = 20
#: Multiples of the median distance that serve as bandwidths of the Gaussian kernels; each is
#: half of the one before.
BANDWIDTHS = (4.0, 2.0, 1.0, 0.5, 0.25)
#: Rows and columns of a tile: 512 x 512 float64 stays in a core's cache.
_TILE = 512
#: More rows than this estimate the median distance from a subset.
_MEDIAN_ROWS = 1000


@dataclass(frozen=True, kw_only=True)
class ShiftTest:
    """One of :data:`TESTS` of "both domains are alike", by permutation; or why it is refused.

    ``p_adjusted`` is adjusted over the tests (Holm).
    """

    name: str
    statistic: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    refused: str | None = None


def detect(
    source: DomainData, target: DomainData, *, draws: int = DRAWS, seed: int = 0
) -> tuple[list[ShiftTest], Interval]:
    """Test whether two domains differ. Labels are not used.

    Args:
        source: Features, and probabilities out of fold.
        target: Features, and probabilities by the heads of the same folds.
        draws: Permutations of each test.
        seed: Of permutations and folds.

    Returns:
        The tests, and the AUC of the classifier that predicts the domain from the features.

    Raises:
        StudyError: The domains have too few patients for any p-value.
    """
    distinct = math.comb(source.patients + target.patients, target.patients)
    if 1 / distinct > LEVEL:
        raise StudyError(
            f"{source.patients} source and {counted(target.patients, 'target patient')} can be "
            f"permuted in {counted(distinct, 'way')}, so no p-value can fall below "
            f"{1 / distinct:.3g} (level {LEVEL:g}): add patients, or give patient ids if images "
            "were taken for one patient"
        )
    domain = np.repeat([0, 1], [len(source), len(target)])
    unit = patient_units(domain, np.concatenate([source.group, target.group]))
    permuted = permuted_labels(domain == 1, unit, draws=draws, seed=seed)
    features = np.concatenate([source.get_features(), target.get_features()])
    classifier = separability(features, domain, unit, draws=draws, seed=seed)
    distances = largest_ks(np.concatenate([source.get_proba(), target.get_proba()]), permuted)
    results = {"bbsd_ks": (float(distances[0]), permutation_p(distances))}
    fewest = min(source.patients, target.patients)
    if fewest >= _NEEDED_PATIENTS:
        results["ridge_c2st"] = classifier.auc.estimate, classifier.p
        scores = _largest_standard_score(mmd_statistics(features, permuted, unit))
        results["mmd_aggregated"] = float(scores[0]), permutation_p(scores)
    adjusted = holm([p for _, p in results.values()])
    refused = f"a domain has {counted(fewest, 'patient')}, and {_NEEDED_PATIENTS} are needed"
    tests = [
        ShiftTest(name=name, statistic=statistic, p=p, p_adjusted=float(corrected))
        for (name, (statistic, p)), corrected in zip(results.items(), adjusted, strict=True)
    ]
    tests += [ShiftTest(name=name, refused=refused) for name in TESTS if name not in results]
    return tests, classifier.auc


def _largest_standard_score(statistics: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest standard score of several statistics (k, B) in each permutation, shape (B,).

    It keeps the level without splitting the data (the idea of MMDAgg, Schrab et al. 2023).
    """
    spread = statistics.std(axis=1, keepdims=True)
    spread[spread == 0] = np.inf
    return np.asarray(((statistics - statistics.mean(axis=1, keepdims=True)) / spread).max(axis=0))


def images_differ(tests: Iterable[ShiftTest]) -> bool | None:
    """True if a test is sure, False if no test has a hint, None in between.

    A wrong True or False would name a wrong cause, so there are two levels.
    """
    p = [test.p_adjusted for test in tests]
    least = min(value for value in p if value is not None)
    if least <= _SURE:
        return True
    return False if None not in p and least > _NO_HINT else None


def largest_ks(proba: NDArray[np.floating], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The largest Kolmogorov-Smirnov distance over the classes (BBSD, Lipton et al. 2018).

    The permutation of the maximum replaces the Bonferroni correction of Rabanser et al. 2019.

    Args:
        proba: Shape (n, K), rows sum to 1.
        labels: Shape (n, B), True for the target.

    Returns:
        Shape (B,), in [0, 1].
    """
    n, n_target = len(labels), labels.sum(axis=0)
    # A target row adds n_s to the gap between the distribution functions, a source row takes
    # n_t: integers, so that equal distances are equal exactly and ties are counted as such.
    steps = labels * n - n_target
    columns = proba.T[1:] if proba.shape[1] == 2 else proba.T  # two classes mirror each other
    largest = np.zeros_like(n_target)
    for values in columns:
        order = np.argsort(values, kind="stable")
        gaps = np.cumsum(steps[order], axis=0, out=steps[order])
        # Only the last of a run of equal values is a point of the distribution function.
        gaps = gaps[np.append(np.diff(values[order]) > 0, [True])]
        largest = np.maximum(largest, np.maximum(gaps.max(axis=0), -gaps.min(axis=0)))
    return np.asarray(largest / (n_target * (n - n_target)))


def mmd_statistics(
    features: NDArray[np.floating], labels: NDArray[np.bool_], unit: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Unbiased squared maximum mean discrepancy (Gretton et al. 2012) of each bandwidth.

    With t the labels and K the kernel matrix, it needs t'Kt, t'K1 and the diagonal, which is
    1. K is made tile by tile and never held. The images of a patient have the same label in
    every permutation, so their part of a tile is added up before it is multiplied.

    Args:
        features: Shape (n, d).
        labels: Shape (n, B), True for the target.
        unit: Shape (n,), patient of each row.

    Returns:
        Shape (5, B), by :data:`BANDWIDTHS`; may be negative.
    """
    order = np.argsort(unit, kind="stable")
    rows = features[order] - features.mean(axis=0, dtype=np.float64)
    rows, unit, labels = rows / (np.sqrt(np.mean(rows**2)) or 1.0), unit[order], labels[order]
    median = _median_distance(rows)
    within, sums = np.zeros((2, len(BANDWIDTHS), labels.shape[1]))
    total = np.zeros((len(BANDWIDTHS), 1))
    spans = [slice(start, start + _TILE) for start in range(0, len(rows), _TILE)]
    for a, b in combinations_with_replacement(spans, 2):
        squared = euclidean_distances(rows[a], None if a == b else rows[b], squared=True)
        first_a, first_b = (np.flatnonzero(np.diff(unit[s], prepend=-1)) for s in (a, b))
        t_a, t_b = (labels[s][f].astype(np.float64) for s, f in ((a, first_a), (b, first_b)))
        kernel = np.exp(squared / (-2 * (BANDWIDTHS[0] * median) ** 2))
        for i in range(len(BANDWIDTHS)):
            if i:  # half the bandwidth is the kernel to the power 4
                kernel **= 2
                kernel **= 2
            joined = np.add.reduceat(np.add.reduceat(kernel, first_a, axis=0), first_b, axis=1)
            form = (t_a * (joined @ t_b)).sum(axis=0)
            within[i] += form if a == b else 2 * form
            sums[i] += joined.sum(axis=1) @ t_a + (0 if a == b else joined.sum(axis=0) @ t_b)
            total[i] += joined.sum() * (1 if a == b else 2)
    n_t = labels.sum(axis=0).astype(np.float64)
    n_s, across = len(labels) - n_t, sums - within
    pairs_t = (within - n_t) / (n_t * (n_t - 1))
    pairs_s = (total - 2 * across - within - n_s) / (n_s * (n_s - 1))
    return np.asarray(pairs_t + pairs_s - 2 * across / (n_t * n_s))


def _median_distance(rows: NDArray[np.float64]) -> float:
    """Median Euclidean distance between two centred rows; 1 if most pairs coincide.

    Of many rows, those at evenly spaced ranks of the norm stand for all: a choice that
    depends neither on their order nor on a rotation.
    """
    if len(rows) > _MEDIAN_ROWS:
        by_norm = np.argsort(np.einsum("ij,ij->i", rows, rows), kind="stable")
        rows = rows[by_norm[np.linspace(0, len(rows) - 1, _MEDIAN_ROWS).astype(np.intp)]]
    squared = euclidean_distances(rows, squared=True)[np.triu_indices(len(rows), 1)]
    return float(np.sqrt(np.median(squared))) or 1.0
