"""Do the source and a target differ? Three two-sample tests, each with two controls.

The tests look at the head's scores (BBSD-KS), at what a classifier finds in the features
(C2ST), and at distances between features (MMD). Each compares the observed statistic with
its values after the domains of whole patients were permuted: images of one patient resemble
each other, and permuting single images would reject too often.

A p-value alone says little, so each test runs twice more where the answer is known: on two
halves of the source (a small p discredits the test), and on the same halves with a planted
shift (a large p means that the test cannot see a shift of that size).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations_with_replacement
from types import MappingProxyType

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

#: Permutations of each test.
DRAWS = 999
#: Permutations of the controls and of the AUC inside each class.
_CONTROL_DRAWS = 199
#: Level of the tests.
LEVEL = 0.05
#: Adjusted p-values at which the images surely differ, and above which nothing hints at it.
_SURE, _NO_HINT = 0.02, 0.2
#: Permutations below which no p-value, 1 / (draws + 1) at least, reaches the level.
FEWEST_DRAWS = math.ceil(1 / LEVEL) - 1
#: Below this many patients in a domain, the tests of the features are refused.
_NEEDED_PATIENTS = 20
#: The planted shift: so many standard deviations, in this share of the features.
_PLANTED_SHIFT, _PLANTED_SHARE = 0.25, 0.05
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
        p_null_control: Of two halves of the source, which are alike; None if refused there.
        p_positive_control: Of the same halves with a planted shift.
        refused: Why there is no value.
    """

    name: str
    statistic: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    p_null_control: float | None = None
    p_positive_control: float | None = None
    refused: str | None = None


def detect(
    source: DomainData,
    target: DomainData,
    predict_proba: Callable[[NDArray[np.floating]], NDArray[np.float64]],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[list[ShiftTest], DomainAUC]:
    """Test whether two domains differ, and show what the tests say where that is known.

    Args:
        source: Features, labels, and probabilities out of fold, so that they are
            exchangeable with the target's when nothing has shifted.
        target: Features, and probabilities of the same head. Labels are not looked at.
        predict_proba: Features (n, d) -> probabilities (n, K) of that head, which shows the
            planted shift to the test of the scores.
        draws: Permutations of each test; of the controls at most 199.
        seed: Seed of permutations, folds and halves.

    Returns:
        The tests, and how well a classifier predicts the domain from the features.

    Raises:
        StudyError: The domains have too few patients for any p-value.
    """
    refuse_hopeless(source.patients, target.patients)
    few_draws = min(draws, _CONTROL_DRAWS)
    auc = domain_auc(source, target.sealed(), draws=draws, class_draws=few_draws, seed=seed)
    # The classifier's AUC and its permutations are those of the test: they are made once.
    tests = run_tests(source, target, draws=draws, seed=seed, classifier=auc.overall)
    halves, planted = _halves(source, target.patients, predict_proba, seed)
    null, positive = (run_tests(*pair, draws=few_draws, seed=seed) for pair in (halves, planted))
    return [
        replace(test, p_null_control=without.p, p_positive_control=shifted.p)
        for test, without, shifted in zip(tests, null, positive, strict=True)
    ], auc


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
    """The tests alone, without controls; see :func:`detect`.

    Args:
        source: See :func:`detect`.
        target: See :func:`detect`.
        draws: Permutations of each test.
        seed: See :func:`detect`.
        classifier: Of the domain; fitted here where left out.
    """
    pair = _Pair(source=source, target=target, draws=draws, seed=seed, classifier=classifier)
    fewest = min(source.patients, target.patients)
    refused = {}
    if fewest < _NEEDED_PATIENTS:
        why = f"a domain has {counted(fewest, 'patient')}, and {_NEEDED_PATIENTS} are needed"
        refused = dict.fromkeys(_NEED_PATIENTS, why)
    values = {name: test(pair) for name, test in TESTS.items() if name not in refused}
    adjusted = dict(zip(values, holm([p for _, p in values.values()]).tolist(), strict=True))
    return [
        ShiftTest(
            name=name,
            statistic=values[name][0] if name in values else None,
            p=values[name][1] if name in values else None,
            p_adjusted=adjusted.get(name),
            refused=refused.get(name),
        )
        for name in TESTS
    ]


def images_differ(tests: Iterable[ShiftTest]) -> bool | None:
    """True where a test is sure, False where none has a hint, None between the two.

    A wrong True or False would name a wrong cause, so both ask for more than one level.
    """
    p = [test.p_adjusted for test in tests]
    least = min(value for value in p if value is not None)
    if least <= _SURE:
        return True
    return False if None not in p and least > _NO_HINT else None


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Two domains, source first, and the permutations of their patients."""

    source: DomainData
    target: DomainData
    draws: int
    seed: int
    classifier: Separability | None

    @cached_property
    def is_target(self) -> NDArray[np.bool_]:
        return np.arange(len(self.source) + len(self.target)) >= len(self.source)

    @cached_property
    def unit(self) -> NDArray[np.intp]:
        """Patient of each row; the same id in both domains is two."""
        group = np.concatenate([self.source.group, self.target.group])
        return patient_units(self.is_target, group)

    @cached_property
    def features(self) -> NDArray[np.floating]:
        return np.concatenate([self.source.embedded(), self.target.embedded()])

    @cached_property
    def permuted(self) -> NDArray[np.bool_]:
        """Shape (n, B + 1), True for the target, column 0 observed."""
        return permuted_labels(self.is_target, self.unit, draws=self.draws, seed=self.seed)


def _score_ks(pair: _Pair) -> tuple[float, float]:
    proba = np.concatenate([pair.source.scored(), pair.target.scored()])
    return _with_p(largest_ks(proba, pair.permuted))


def _c2st(pair: _Pair) -> tuple[float, float]:
    """Ridge classifier two-sample test (Lopez-Paz and Oquab 2017); the statistic is the AUC."""
    result = pair.classifier or separability(
        pair.features,
        pair.is_target.astype(np.int64),
        pair.unit,
        draws=pair.draws,
        seed=pair.seed,
    )
    return result.auc.estimate, result.p


def _mmd(pair: _Pair) -> tuple[float, float]:
    """MMD of several bandwidths: the largest standard score of each permutation.

    Observed and permuted labels are scored alike, so the test keeps its level without
    splitting the data (the idea of MMDAgg, Schrab et al. 2023).
    """
    statistics = mmd_statistics(pair.features, pair.permuted, pair.unit)
    spread = statistics.std(axis=1, keepdims=True)
    spread[spread == 0] = np.inf
    return _with_p(((statistics - statistics.mean(axis=1, keepdims=True)) / spread).max(axis=0))


def _with_p(statistics: NDArray[np.float64]) -> tuple[float, float]:
    return float(statistics[0]), permutation_p(statistics)


#: To add a test, write a function above and one line here; Holm's correction runs over all.
TESTS: Mapping[str, Callable[[_Pair], tuple[float, float]]] = MappingProxyType(
    {"bbsd_ks": _score_ks, "ridge_c2st": _c2st, "mmd_aggregated": _mmd}
)
#: Tests that mislead in domains of few patients.
_NEED_PATIENTS = ("ridge_c2st", "mmd_aggregated")


def _halves(
    source: DomainData,
    target_patients: int,
    predict_proba: Callable[[NDArray[np.floating]], NDArray[np.float64]],
    seed: int,
) -> tuple[tuple[DomainData, DomainData], tuple[DomainData, DomainData]]:
    """Two halves of the source's patients, and the same with a shift planted in the second.

    Where the target has fewer patients than a half, the second part shrinks to as many, so
    that the controls are no more powerful than the comparison they stand beside.
    """
    rng = np.random.default_rng([seed, 3])
    patients, member = np.unique(source.group, return_inverse=True)
    share = min(0.5, target_patients / patients.size)
    in_second = np.isin(member, rng.permutation(patients.size)[: round(share * patients.size)])
    first, second = source.take(~in_second), source.take(in_second)
    features = second.embedded()
    width = features.shape[1]
    chosen = rng.permutation(width)[: max(1, round(_PLANTED_SHARE * width))]
    shift = np.zeros(width, dtype=features.dtype)
    shift[chosen] = _PLANTED_SHIFT * features[:, chosen].std(axis=0)
    planted = (
        first.with_(proba=predict_proba(first.embedded())),
        second.with_(features=features + shift, proba=predict_proba(features + shift)),
    )
    return (first, second), planted


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
