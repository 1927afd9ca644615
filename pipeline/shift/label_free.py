"""Formulas for the accuracy on a target without its labels.

They read calibrated probabilities, judge the calls that the head makes and assume that
the outcome given the score stays what it is on the source.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import csr_array, eye_array, kron, vstack
from scipy.special import xlogy

from pipeline.errors import StudyError
from pipeline.evaluation.intervals import percentile_interval
from pipeline.evaluation.isotonic import fit_monotone
from pipeline.shift.adapt import fit_calibration
from pipeline.shift.prevalence import PRIORS, Evidence

_BINARY = 2
Shares = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One question: what is known of both domains, and a guess at the target's class mix."""

    evidence: Evidence
    """Probabilities of both domains and source labels."""
    prior: Shares
    """Shape (K,): class mix of the target by MLLS."""

    def right(self) -> NDArray[np.bool_]:
        """Whether each source image is right, shape (n,)."""
        return np.asarray(self.evidence.source_calls == self.evidence.labels)

    def sure(self) -> tuple[Shares, Shares]:
        """Calibrated probability of the called class on source and target, (n,) and (m,)."""
        known = self.evidence
        return _of_class(known.source, known.source_calls), _of_class(
            known.target, known.target_calls
        )


def average_confidence(case: Case) -> float:
    """AC: mean probability of the called class. CBPE's expected accuracy is the same number."""
    return float(case.sure()[1].mean())


def difference_of_confidences(case: Case) -> float:
    """DoC: acc_S - (AC_S - AC_T) (Guillory 2021)."""
    drop = float(case.sure()[0].mean()) - average_confidence(case)
    return _rate(float(case.right().mean()) - drop)


def importance_mapping(case: Case) -> float:
    """IM: mean over the target of the source's isotonic accuracy given the confidence.

    Of the probabilities as given: the curve calibrates them, and the number is then one
    minus the ``expected_error`` of :func:`pipeline.shift.decompose.score_identity`.
    Pooling reads low at the uncertain end where the source has few images: by 0.9 points
    with 1600 images and a target of mostly uncertain ones, by 0.1 with 16,000.
    """
    known = case.evidence
    curve = fit_monotone(known.source_given.max(axis=1), case.right())
    return float(curve(known.target_given.max(axis=1)).mean())


def thresholded_confidence(case: Case) -> float:
    """ATC-MC: share of the target above the source's error quantile (Garg 2022)."""
    return _above(_largest, case)


def thresholded_entropy(case: Case) -> float:
    """ATC-NE: the same of negative entropy; for two classes it is the same number."""
    return _above(_negative_entropy, case)


def class_confusion_by_threshold(case: Case) -> Shares:
    """CM-ATC: confusion of the target by one threshold per called class (Fluehmann 2025).

    Args:
        case: Both domains.

    Returns:
        Share of images by (true, called) class, shape (K, K). Wrong ones of a called class
        are dealt to the others as on the source.
    """
    return _by_called_class(case, _share_above)


def class_confusion_by_confidence(case: Case) -> Shares:
    """CM-DoC: the same with one difference of confidences per called class."""
    return _by_called_class(case, _share_by_difference)


def expected_confusion(case: Case) -> Shares:
    """CBPE: confusion expected under the probabilities (NannyML), shape (true, called)."""
    called = np.eye(case.evidence.target.shape[1])[case.evidence.target_calls]
    return np.asarray(case.evidence.target.T @ called / len(called), dtype=np.float64)


def transport(probabilities: NDArray[np.floating], prior: NDArray[np.floating]) -> Shares:
    """Cost of each row in the cheapest match of rows to labels drawn from a prior.

    A row costs 1 - p of the class it is matched with, half the L1 distance to its one-hot
    label; the mean is the W1 distance of COT (Lu 2023, arXiv 2305.15640). For two classes
    the rows most probable for a class get it, and the mean is mean|sort(p) - sort(labels)|.

    Args:
        probabilities: Shape (m, K).
        prior: Shape (K,), rounded to whole labels.

    Returns:
        Shape (m,), in [0, 1].
    """
    counts = _whole_labels(prior, len(probabilities))
    if len(prior) == _BINARY:
        order = np.argsort(probabilities[:, 1], kind="stable")
        matched = np.empty(len(order), dtype=np.intp)
        matched[order] = np.repeat([0, 1], counts)
    else:
        matched = _matched_labels(probabilities, counts)
    return 1 - _of_class(np.asarray(probabilities, dtype=np.float64), matched)


def transport_source_prior(case: Case) -> float:
    """COT with the source's class mix."""
    return 1 - float(transport(case.evidence.target, case.evidence.prior()).mean())


def transport_mlls_prior(case: Case) -> float:
    """COT with the class mix that MLLS finds."""
    return 1 - float(transport(case.evidence.target, case.prior).mean())


def thresholded_transport(case: Case) -> float:
    """COTT: share of the target cheaper than the source's error quantile of the cost."""
    source = -transport(case.evidence.source, case.evidence.prior())
    target = -transport(case.evidence.target, case.prior)
    return _share_above(source, case.right(), target)


def expected_auroc(probability: NDArray[np.floating], score: NDArray[np.floating]) -> float:
    """CBPE: AUROC expected when labels are drawn from the probabilities.

    sum over pairs i != j of p_i (1 - p_j) [s_i > s_j], ties half, over the same without the
    bracket: the ratio of the expectations.

    Args:
        probability: Shape (m,), of the positive class.
        score: Shape (m,), what is ranked.

    Returns:
        In [0, 1]; NaN where no pair of classes can be.
    """
    _, place = np.unique(score, return_inverse=True)
    up = np.bincount(place, weights=probability)
    down = np.bincount(place, weights=1 - probability)
    alone = float(probability @ (1 - probability))
    below = np.cumsum(down) - down / 2
    pairs = float(up.sum() * down.sum()) - alone
    return (float(up @ below) - alone / 2) / pairs if pairs > 0 else float("nan")


def _accuracy_of(confusion: Callable[[Case], Shares]) -> Callable[[Case], float]:
    return lambda case: float(np.trace(confusion(case)))


#: Estimates of the whole confusion matrix.
CONFUSIONS: Mapping[str, Callable[[Case], Shares]] = MappingProxyType(
    {
        "cm_atc": class_confusion_by_threshold,
        "cm_doc": class_confusion_by_confidence,
        "cbpe": expected_confusion,
    }
)
#: To add an estimate of the accuracy, write a function above and one line here.
ESTIMATES: Mapping[str, Callable[[Case], float]] = MappingProxyType(
    {
        "ac": average_confidence,
        "doc": difference_of_confidences,
        "im": importance_mapping,
        "atc_mc": thresholded_confidence,
        "atc_ne": thresholded_entropy,
        "cot_source_prior": transport_source_prior,
        "cot_mlls_prior": transport_mlls_prior,
        "cott": thresholded_transport,
        **{name: _accuracy_of(confusion) for name, confusion in CONFUSIONS.items()},
    }
)
#: Estimates whose cost counts every chance difference of class counts, whatever its sign: a
#: redrawn sample has more of them than the data, so its value is lower on average.
LOWERED_BY_DRAWING = frozenset({"cot_source_prior", "cot_mlls_prior"})


def _of_class(probabilities: Shares, classes: NDArray[np.intp]) -> Shares:
    return np.asarray(probabilities[np.arange(len(classes)), classes])


def _largest(probabilities: Shares) -> Shares:
    return np.asarray(probabilities.max(axis=1))


def _negative_entropy(probabilities: Shares) -> Shares:
    return np.asarray(xlogy(probabilities, probabilities).sum(axis=1))


def _above(score: Callable[[Shares], Shares], case: Case) -> float:
    return _share_above(score(case.evidence.source), case.right(), score(case.evidence.target))


def _share_above(source: Shares, right: NDArray[np.bool_], target: Shares) -> float:
    """Share of ``target`` at or above t, where the share of ``source`` below t is its error."""
    errors = int((~right).sum())
    if errors == len(source):
        return 0.0
    return float((target >= np.sort(source)[errors]).mean())


def _share_by_difference(source: Shares, right: NDArray[np.bool_], target: Shares) -> float:
    return _rate(float(right.mean() - source.mean() + target.mean()))


def _by_called_class(case: Case, share: Callable[[Shares, Any, Shares], float]) -> Shares:
    known, right = case.evidence, case.right()
    called_s, called_t = known.source_calls, known.target_calls
    (sure_s, sure_t), mixed_up = case.sure(), known.confusion()
    confusion = np.zeros_like(mixed_up)
    for k in np.unique(called_t):
        # A class that the source never calls has no curve of its own: take that of all.
        mine = called_s == k if (called_s == k).any() else np.ones_like(right)
        there = sure_t[called_t == k]
        hit = share(sure_s[mine], right[mine], there)
        others = np.delete(mixed_up[k], k)
        weight = (
            others / others.sum() if others.sum() > 0 else np.full(others.shape, 1 / others.size)
        )
        column = np.insert((1 - hit) * weight, k, hit)
        confusion[:, k] = column * len(there) / len(called_t)
    return confusion


def _whole_labels(prior: NDArray[np.floating], n: int) -> NDArray[np.intp]:
    """Counts of n labels nearest to a prior: largest remainders are rounded up."""
    exact = np.asarray(prior, dtype=np.float64) * n
    counts = np.floor(exact).astype(np.intp)
    short = n - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:short]] += 1
    return counts


def _matched_labels(
    probabilities: NDArray[np.floating], counts: NDArray[np.intp]
) -> NDArray[np.intp]:
    """Cheapest match by the transport program, whose corners are whole, shape (m,)."""
    m, classes = probabilities.shape
    each_row = kron(eye_array(m), np.ones((1, classes)))
    each_class = kron(np.ones((1, m)), eye_array(classes))
    solved = linprog(
        -probabilities.ravel(),
        A_eq=csr_array(vstack([each_row, each_class])),
        b_eq=np.concatenate([np.ones(m), counts]),
        bounds=(0, None),
    )
    return np.asarray(solved.x.reshape(m, classes).argmax(axis=1))


def _rate(value: float) -> float:
    return min(1.0, max(0.0, value))


# Foretell the accuracy on a target whose labels nobody has.


#: Shown wherever an estimate is shown.
WARNING = (
    "Assumes stable Y|score: that a score means on the target what it means on the source. "
    "Accuracy on unlabelled data cannot be identified without such an assumption "
    "(Garg et al. 2022). Where a shortcut breaks, these estimates come out too high."
)
#: Estimates that enter the range; ``ac`` and ``doc`` are shown for comparison only.
RANGED = tuple(name for name in ESTIMATES if name not in {"ac", "doc"})
_AUROC = "auroc"
_BINARY = 2


@dataclass(frozen=True, kw_only=True)
class SourceScores:
    """What is known of the labelled domain."""

    probabilities: NDArray[np.floating]
    """Shape (n, K), out of fold."""
    labels: NDArray[np.integer]
    """Shape (n,), 0 to K - 1, every class present."""
    groups: NDArray[Any]
    """Shape (n,), patients."""


@dataclass(frozen=True, kw_only=True)
class TargetScores:
    """What is known of the other domain: no labels."""

    probabilities: NDArray[np.floating]
    """Shape (m, K), of the same head."""
    groups: NDArray[Any]
    """Shape (m,), patients."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its patient-bootstrap interval; sampling only, not the assumption."""

    estimate: float
    """On the data themselves."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What the scores foretell of a target."""

    accuracy: Mapping[str, Estimate]
    """By formula, see :data:`pipeline.shift.label_free.ESTIMATES`."""
    low: float
    """Lowest estimate among :data:`RANGED`."""
    high: float
    """Highest of them."""
    prevalence: Mapping[str, tuple[Estimate, ...]]
    """By method, one per class."""
    confusion: Mapping[str, NDArray[np.float64]]
    """By method: share of images by (true, called) class, shape (K, K)."""
    auroc: Estimate | None
    """Expected under the probabilities (CBPE); None unless there are two classes."""
    warning: str = WARNING
    """To be shown beside the numbers."""


def forecast(
    source: SourceScores, target: TargetScores, rng: np.random.Generator, draws: int = 200
) -> Forecast:
    """Foretell accuracy, prevalence and confusion on an unlabelled target.

    The head's probabilities are calibrated on the source first (BCTS). A draw resamples
    the patients of both domains and repeats everything, calibration included.

    Args:
        source: The labelled domain.
        target: The unlabelled one.
        rng: Source of the draws.
        draws: Number of draws.

    Raises:
        StudyError: The domains do not fit, or a class is absent from the source.
    """
    _refuse_misfit(source, target)
    case = _case(source, target)
    values = _numbers(case)
    drawn = [_numbers(_case(*pair)) for pair in _redrawn(source, target, rng, draws)]
    known = {
        name: _estimate(name, value, np.array([one[name] for one in drawn]))
        for name, value in values.items()
    }
    ranged = [known[name].estimate for name in RANGED]
    classes = source.probabilities.shape[1]
    return Forecast(
        accuracy=MappingProxyType({name: known[name] for name in ESTIMATES}),
        low=min(ranged),
        high=max(ranged),
        prevalence={name: tuple(known[f"{name}/{k}"] for k in range(classes)) for name in PRIORS},
        confusion={name: confusion(case) for name, confusion in CONFUSIONS.items()},
        auroc=known.get(_AUROC),
    )


def _estimate(name: str, value: float, drawn: NDArray[np.float64]) -> Estimate:
    if name in LOWERED_BY_DRAWING and drawn.size:
        drawn = np.clip(drawn + value - drawn.mean(), 0, 1)
    low, high = percentile_interval(drawn)
    return Estimate(estimate=value, low=low, high=high)


def _case(source: SourceScores, target: TargetScores) -> Case:
    calibrate = fit_calibration(source.probabilities, source.labels)
    evidence = Evidence(
        source_given=source.probabilities,
        target_given=target.probabilities,
        source=calibrate(source.probabilities),
        target=calibrate(target.probabilities),
        labels=source.labels,
    )
    return Case(evidence=evidence, prior=PRIORS["mlls_em"](evidence))


def _numbers(case: Case) -> dict[str, float]:
    """Every single number that gets an interval, by name."""
    numbers = {name: estimate(case) for name, estimate in ESTIMATES.items()}
    for name, prior in PRIORS.items():
        shares = case.prior if name == "mlls_em" else prior(case.evidence)
        numbers |= {f"{name}/{k}": float(share) for k, share in enumerate(shares)}
    if case.evidence.target.shape[1] == _BINARY:
        positive = case.evidence.target[:, 1]
        numbers[_AUROC] = expected_auroc(positive, positive)
    return numbers


def _redrawn(
    source: SourceScores, target: TargetScores, rng: np.random.Generator, draws: int
) -> list[tuple[SourceScores, TargetScores]]:
    """Both domains with their patients drawn anew; draws that lack a class are left out."""
    pairs = []
    for _ in range(draws):
        s, t = _patient_rows(source.groups, rng), _patient_rows(target.groups, rng)
        if np.unique(source.labels[s]).size < source.probabilities.shape[1]:
            continue
        pairs.append(
            (
                SourceScores(
                    probabilities=source.probabilities[s],
                    labels=source.labels[s],
                    groups=source.groups[s],
                ),
                TargetScores(probabilities=target.probabilities[t], groups=target.groups[t]),
            )
        )
    return pairs


def _patient_rows(groups: NDArray[Any], rng: np.random.Generator) -> NDArray[np.intp]:
    patients, member = np.unique(groups, return_inverse=True)
    times = np.bincount(rng.integers(patients.size, size=patients.size), minlength=patients.size)
    return np.repeat(np.arange(len(groups)), times[member])


def _refuse_misfit(source: SourceScores, target: TargetScores) -> None:
    classes = source.probabilities.shape[1]
    if target.probabilities.shape[1] != classes:
        raise StudyError(
            f"source and target have {classes} and {target.probabilities.shape[1]} classes: "
            "use the probabilities of one head for both"
        )
    present = np.unique(source.labels)
    if present.size != classes or not len(target.probabilities):
        raise StudyError(
            f"a forecast needs every class in the source and an image in the target; got classes "
            f"{present.tolist()} of {classes} and {len(target.probabilities)} images"
        )
