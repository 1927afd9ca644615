"""Do the source and a target differ? Three two-sample tests by permutation of patients.

The tests look at the head's scores (BBSD-KS), at what a classifier finds in the features
(C2ST), and at distances between features (MMD). Each compares the observed statistic with
its values after the domains of whole patients were permuted: images of one patient resemble
each other, and permuting single images would reject too often.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import euclidean_distances

from pipeline.data.domain import DomainData
from pipeline.errors import StudyError
from pipeline.evaluation.paired_tests import holm
from pipeline.evaluation.separability import (
    DomainAUC,
    Separability,
    domain_auc,
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
#: Permutations of the AUC inside each class, at most.
_CLASS_DRAWS = 199
#: Level of the tests.
LEVEL = 0.05
#: Adjusted p-values at which the images surely differ, and above which nothing hints at it.
_SURE, _NO_HINT = 0.02, 0.2
#: Permutations below which no p-value, 1 / (draws + 1) at least, reaches the level.
FEWEST_DRAWS = math.ceil(1 / LEVEL) - 1
#: Below this many patients in a domain, the tests of the features are refused.
_NEEDED_PATIENTS = 20
#: Multiples of the median distance that serve as bandwidths of the Gaussian kernels; each is
#: half of the one before, which :func:`_kernels` relies on.
BANDWIDTHS = (4.0, 2.0, 1.0, 0.5, 0.25)
#: Rows and columns of a tile: 512 x 512 float64 stays in a core's cache.
_TILE = 512
#: More rows than this estimate the median distance from a subset.
_MEDIAN_ROWS = 1000


@dataclass(frozen=True, kw_only=True)
class ShiftTest:
    """One test of "both domains are alike".

    Attributes:
        name: Entry of :data:`TESTS`.
        statistic: Observed value; None if refused.
        p: Permutation p-value; None if refused.
        p_adjusted: The same, adjusted over the tests (Holm).
        refused: Why there is no value.
    """

    name: str
    statistic: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    refused: str | None = None


def detect(
    source: DomainData, target: DomainData, *, draws: int = DRAWS, seed: int = 0
) -> tuple[list[ShiftTest], DomainAUC]:
    """Test whether two domains differ.

    Args:
        source: Features, labels, and probabilities out of fold, so that they are
            exchangeable with the target's when nothing has shifted.
        target: Features, and probabilities of the same head. Labels are not looked at.
        draws: Permutations of each test.
        seed: Seed of permutations and folds.

    Returns:
        The tests, and how well a classifier predicts the domain from the features.

    Raises:
        StudyError: The domains have too few patients for any p-value.
    """
    refuse_hopeless(source.patients, target.patients)
    few = min(draws, _CLASS_DRAWS)
    auc = domain_auc(source, target.sealed(), draws=draws, class_draws=few, seed=seed)
    # The classifier's AUC and its permutations are those of the test: they are made once.
    return run_tests(source, target, draws=draws, seed=seed, classifier=auc.overall), auc


def refuse_hopeless(source_patients: int, target_patients: int) -> None:
    """Refuse a test whose smallest possible p-value is above its level.

    Raises:
        StudyError: Too few permutations of these patients are distinct.
    """
    distinct = math.comb(source_patients + target_patients, target_patients)
    if 1 / distinct > LEVEL:
        raise StudyError(
            f"{source_patients} source and {counted(target_patients, 'target patient')} can be "
            f"permuted in {counted(distinct, 'way')}, so no p-value can fall below "
            f"{1 / distinct:.3g} (level {LEVEL:g}): add patients, or give patient ids if images "
            "were taken for one patient"
        )


def run_tests(
    source: DomainData,
    target: DomainData,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    classifier: Separability | None = None,
) -> list[ShiftTest]:
    """The tests alone; see :func:`detect`.

    Args:
        source: See :func:`detect`.
        target: See :func:`detect`.
        draws: Permutations of each test.
        seed: See :func:`detect`.
        classifier: Of the domain; fitted here where left out.
    """
    is_target = np.arange(len(source) + len(target)) >= len(source)
    unit = patient_units(is_target, np.concatenate([source.group, target.group]))
    permuted = permuted_labels(is_target, unit, draws=draws, seed=seed)
    fewest = min(source.patients, target.patients)
    results: dict[str, tuple[float, float]] = {}
    distances = largest_ks(np.concatenate([source.scored(), target.scored()]), permuted)
    results["bbsd_ks"] = float(distances[0]), permutation_p(distances)
    if fewest >= _NEEDED_PATIENTS:
        features = np.concatenate([source.embedded(), target.embedded()])
        classifier = classifier or separability(
            features, is_target.astype(np.int64), unit, draws=draws, seed=seed
        )
        results["ridge_c2st"] = classifier.auc.estimate, classifier.p
        scores = _standard_scores(mmd_statistics(features, permuted, unit))
        results["mmd_aggregated"] = float(scores[0]), permutation_p(scores)
    adjusted = holm([p for _, p in results.values()])
    refused = f"a domain has {counted(fewest, 'patient')}, and {_NEEDED_PATIENTS} are needed"
    return [
        ShiftTest(name=name, statistic=statistic, p=p, p_adjusted=float(corrected))
        for (name, (statistic, p)), corrected in zip(results.items(), adjusted, strict=True)
    ] + [ShiftTest(name=name, refused=refused) for name in TESTS if name not in results]


def _standard_scores(statistics: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest standard score of several statistics (k, B) in each permutation, shape (B,).

    Observed and permuted labels are scored alike, so the test keeps its level without
    splitting the data (the idea of MMDAgg, Schrab et al. 2023).
    """
    spread = statistics.std(axis=1, keepdims=True)
    spread[spread == 0] = np.inf
    return np.asarray(((statistics - statistics.mean(axis=1, keepdims=True)) / spread).max(axis=0))


def images_differ(tests: Iterable[ShiftTest]) -> bool | None:
    """True where a test is sure, False where none has a hint, None between the two.

    A wrong True or False would name a wrong cause, so both ask for more than one level.
    """
    p = [test.p_adjusted for test in tests]
    least = min(value for value in p if value is not None)
    if least <= _SURE:
        return True
    return False if None not in p and least > _NO_HINT else None


# The statistics, for all permutations at once.


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
    # The largest partial sum is n_s n_t <= n^2 / 4.
    integer = np.int32 if n**2 / 4 < np.iinfo(np.int32).max else np.int64
    steps = labels * integer(n) - n_target.astype(integer)
    columns = proba.T[1:] if proba.shape[1] == 2 else proba.T  # two classes mirror each other
    largest = np.zeros(labels.shape[1], dtype=integer)
    for values in columns:
        order = np.argsort(values, kind="stable")
        gaps = np.cumsum(steps[order], axis=0, out=steps[order])
        # Only the last of a run of equal values is a point of the distribution function.
        gaps = gaps[np.append(np.diff(values[order]) > 0, [True])]
        largest = np.maximum(largest, np.maximum(gaps.max(axis=0), -gaps.min(axis=0)))
    return np.asarray(largest / (n_target * (n - n_target)).astype(np.float64))


def mmd_statistics(
    features: NDArray[np.floating],
    labels: NDArray[np.bool_],
    unit: NDArray[np.intp],
    *,
    tile: int = _TILE,
) -> NDArray[np.float64]:
    """Unbiased squared maximum mean discrepancy (Gretton et al. 2012) of each bandwidth.

    With t the labels and K the kernel matrix, it needs t'Kt, t'K1 and the diagonal, which is
    1. K is made tile by tile and never held. The images of a patient have the same label in
    every permutation, so their part of a tile is added up before it is multiplied.

    Args:
        features: Shape (n, d). They are centred and divided by one number; no feature is
            scaled by itself, so rotating the features changes no distance.
        labels: Shape (n, B), True for the target.
        unit: Shape (n,), patient of each row.
        tile: Rows of a tile; changes memory and time, not the result.

    Returns:
        Shape (5, B), by :data:`BANDWIDTHS`; may be negative.
    """
    order = np.argsort(unit, kind="stable")
    rows, unit = _scaled(features)[order], unit[order]
    labels = labels[order]
    median = median_distance(rows)
    within, sums = np.zeros((2, len(BANDWIDTHS), labels.shape[1]))
    total = np.zeros((len(BANDWIDTHS), 1))
    spans = [slice(start, start + tile) for start in range(0, len(rows), tile)]
    for a, b in combinations_with_replacement(spans, 2):
        squared = euclidean_distances(rows[a], None if a == b else rows[b], squared=True)
        first_a, first_b = (np.flatnonzero(np.diff(unit[s], prepend=-1)) for s in (a, b))
        t_a, t_b = (labels[s][f].astype(np.float64) for s, f in ((a, first_a), (b, first_b)))
        for i, kernel in enumerate(_kernels(squared, median)):
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


def _kernels(squared: NDArray[np.float64], median: float) -> Iterator[NDArray[np.float64]]:
    """Gaussian kernels of :data:`BANDWIDTHS`; half the bandwidth is the kernel to the power 4."""
    kernel = np.exp(squared / (-2 * (BANDWIDTHS[0] * median) ** 2))
    for number in range(len(BANDWIDTHS)):
        if number:
            kernel **= 2
            kernel **= 2
        yield kernel


def _scaled(features: NDArray[np.floating]) -> NDArray[np.float64]:
    """Centre the rows, and divide all by one number so that their mean square is 1."""
    centred = np.asarray(features - features.mean(axis=0, dtype=np.float64), dtype=np.float64)
    scale = np.sqrt(np.mean(centred**2))
    return centred / scale if scale > 0 else centred


def median_distance(rows: NDArray[np.float64]) -> float:
    """Median Euclidean distance between two rows; 1 if more than half of the pairs coincide.

    Of many rows, those at evenly spaced ranks of the norm stand for all: a choice that
    depends neither on their order nor on a rotation.

    Args:
        rows: Shape (n, d), centred.
    """
    if len(rows) > _MEDIAN_ROWS:
        by_norm = np.argsort(np.einsum("ij,ij->i", rows, rows), kind="stable")
        rows = rows[by_norm[np.linspace(0, len(rows) - 1, _MEDIAN_ROWS).astype(np.intp)]]
    squared = euclidean_distances(rows, squared=True)[np.triu_indices(len(rows), 1)]
    return float(np.sqrt(np.median(squared))) or 1.0
