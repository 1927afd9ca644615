"""Find images whose label may be wrong: confident learning, with heads of other patients.

C. Northcutt, L. Jiang and I. Chuang, Confident learning: estimating uncertainty in dataset
labels, Journal of Artificial Intelligence Research 70, 2021. A head is confident of a class
if it gives the class at least the probability that images of that class get on average. If it
is confident of another class than the label, and does not think the label the most probable
class, the image is listed to be read again: it may be labelled wrongly, or hard to read.
cleanlab.filter lists the same images in 59 of 60 random cases.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from pipeline.data.domain import mean_and_scale
from pipeline.data.leaks import NOTE, OK, CheckResult, impossible, labelled_domains
from pipeline.data.patients import patient_folds
from pipeline.data.samples import Samples
from pipeline.errors import StudyError
from pipeline.evaluation.separability import separability
from pipeline.heads.logistic import make_logistic
from pipeline.words import counted, first_of

LABELS = "label noise"
#: A list with fewer expected wrong labels than this is dropped.
_FEWEST_WRONG = 0.5
#: Enough permutations to see that a head predicts anything at all.
_DRAWS = 199
_LEVEL = 0.025
_INVERSE_PENALTY = 1e-2
#: Path, label, the predicted class, and the probability of that.
Image = dict[str, str | float]


def confident_class(label: NDArray[np.integer], proba: NDArray[np.floating]) -> NDArray[np.int64]:
    """The class that a head is confident of, by the thresholds of confident learning.

    Args:
        label: The given labels, shape ``(n,)``, 0 to K - 1.
        proba: Probabilities by heads that did not see the image, shape ``(n, K)``.

    Returns:
        Shape ``(n,)``; the most probable of several such classes, -1 if there is none.
    """
    is_k = label[:, None] == np.arange(proba.shape[1])
    means = [proba[rows, k].mean() if rows.any() else np.inf for k, rows in enumerate(is_k.T)]
    confident = np.where(proba >= np.array(means), proba, -np.inf)
    return np.where(np.isfinite(confident).any(axis=1), confident.argmax(axis=1), -1)


def label_checks(samples: Samples, X: NDArray[np.floating]) -> list[Callable[[], CheckResult]]:
    """For each domain, the check that looks for wrong labels with heads of other patients."""
    return [
        partial(_label_issues, domain, samples.where(rows), X[rows])
        for domain, rows in labelled_domains(samples)
    ]


def _label_issues(domain: str, samples: Samples, features: NDArray[np.floating]) -> CheckResult:
    present, label = np.unique(samples.label, return_inverse=True)
    try:
        proba = _out_of_fold(features, label, samples.group)
    except StudyError as reason:
        return impossible(LABELS, domain, reason)
    predicted = confident_class(label, proba)
    # The mean of a rare class may be 4 %: then many images reach it, with 96 % for their label.
    rows = np.flatnonzero((predicted != label) & (predicted >= 0) & (proba.argmax(axis=1) != label))
    margin = proba[rows, label[rows]] - proba[rows, predicted[rows]]
    names = [samples.classes[k] for k in present]
    images: list[Image] = [
        {
            "path": samples.name_of(row),
            "label": names[label[row]],
            "predicted": names[predicted[row]],
            "probability": round(float(proba[row, predicted[row]]), 4),
        }
        for row in rows[np.argsort(margin, kind="stable")].tolist()
    ]
    return _check_result(domain, len(samples), images, expected_false_alarms(label, proba, rows))


def expected_false_alarms(
    label: NDArray[np.integer], proba: NDArray[np.floating], rows: NDArray[np.intp]
) -> float:
    """How many images are expected to be listed as ``rows`` are if all labels are right.

    Among the images of a class with right labels, the log odds of that class against the next
    best are assumed to be normal. Median and median deviation give its centre and spread: wrong
    labels hardly move them (an empirical null, Efron 2004). Its tail below the listed images is
    what a head confuses without any wrong label. The median deviation of n images varies like
    the standard deviation of 0.37 n, hence the t distribution. The last of r listed images
    lies r / (r + 1) of the way to the limit below which images are listed, on average.
    """
    others, at = np.log(np.clip(proba, 1e-12, 1.0)), (np.arange(len(label)), label)
    given = others[at]
    others[at] = -np.inf
    odds, total = given - others.max(axis=1), 0.0
    for k in np.unique(label[rows]).tolist():
        of_class, listed = odds[label == k], odds[rows][label[rows] == k]
        centre = np.median(of_class)
        spread = np.median(np.abs(of_class - centre)) / norm.ppf(0.75)
        tail = t.cdf((listed.max() - centre) / max(spread, 1e-12), 0.37 * of_class.size)
        total += of_class.size * tail * (1 + 1 / listed.size)
    return min(float(total), float(rows.size))


def _out_of_fold(
    features: NDArray[np.floating], label: NDArray[np.intp], group: NDArray[np.str_]
) -> NDArray[np.float64]:
    """Probabilities by linear heads that were fitted to other patients, shape ``(n, K)``.

    Raises:
        StudyError: The heads predict no better than chance, or there are too few patients.
    """
    result = separability(features, label, group, draws=_DRAWS)
    if result.p > _LEVEL:
        raise StudyError(
            "the features do not predict the label better than chance, AUC "
            f"{result.auc.estimate:.2f} (p {result.p:.3f} by permutation of patients)"
        )
    mean, scale = mean_and_scale(features)
    X = (features - mean) / scale
    proba = np.zeros((len(label), int(label.max()) + 1))
    # Stratified: a head that saw no patient of a class would be confident of the others.
    for train, test in patient_folds(label, group, seed=0):
        head = make_logistic(_INVERSE_PENALTY).fit(X[train], label[train])
        proba[test] = head.predict_proba(X[test])
    return proba


def _check_result(domain: str, n: int, images: list[Image], false: float) -> CheckResult:
    if len(images) - false < _FEWEST_WRONG:
        text = (
            f"heads fitted to other patients are confident of another class in {len(images)} of "
            f"{n} images, no more than expected if all labels are right"
        )
        return CheckResult(check=LABELS, severity=OK, where=domain, text=text)
    texts = [
        f"{image['path']} (predicted {image['predicted']}, {image['probability']:.2f})"
        for image in images
    ]
    changes = Counter(f"{image['label']} predicted as {image['predicted']}" for image in images)
    return CheckResult(
        check=LABELS,
        severity=NOTE,
        where=domain,
        text=f"{len(images)} of {counted(n, 'image')} may be labelled wrongly, according to heads "
        f"fitted to the other patients; {false:.1f} would be listed if all labels were right, "
        "more if many images are hard to read",
        examples=first_of(texts),
        advice="Have these images read again. Do not drop them unread: that would remove errors "
        "of the head and make it look better",
        share=(len(images) - false) / n,
        values={"expected_false": false, "counts": dict(changes), "images": images},
    )
