"""Which images are probably labelled wrongly? Confident learning, on heads of other patients.

C. Northcutt, L. Jiang and I. Chuang, Confident learning: estimating uncertainty in dataset
labels, Journal of Artificial Intelligence Research 70, 2021. A head is sure of a class if
it gives it at least the probability that images of that class get on average. An image of
which it is sure that it belongs to another class than its label stands off the diagonal
of the confident joint, and is listed to be read again. The list is cautious: a wrong
label does not stand in it where the head is less sure than on average.
"""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from pipeline.data.leaks import NOTE, OK, Finding, cannot_ask, in_each_domain
from pipeline.data.patients import patient_folds
from pipeline.data.samples import Samples
from pipeline.errors import StudyError
from pipeline.shift.adapt import Source
from pipeline.shift.probes import label_probe
from pipeline.words import are, counted

LABELS = "labels"
_SHOWN = 3
#: Enough to see that a head knows anything at all.
_DRAWS = 199
_LEVEL = 0.025
#: Path, label, the class that it seems, and the probability of that.
Image = dict[str, str | float]


def sure_class(labels: NDArray[np.integer], proba: NDArray[np.floating]) -> NDArray[np.int64]:
    """The class that a head is sure of, by the thresholds of confident learning.

    Args:
        labels: Shape ``(n,)``, as given, 0 to K - 1.
        proba: Shape ``(n, K)``, of heads that did not see the image.

    Returns:
        Shape ``(n,)``; the likeliest where the head is sure of several, -1 where of none.
    """
    means = [
        proba[labels == k, k].mean() if (labels == k).any() else np.inf
        for k in range(proba.shape[1])
    ]
    sure = np.where(proba >= np.array(means), proba, -np.inf)
    return np.where(np.isfinite(sure).any(axis=1), sure.argmax(axis=1), -1)


def check_labels(samples: Samples, features: NDArray[np.floating]) -> list[Finding]:
    """In each domain, the images of which heads of its other patients are sure otherwise.

    Args:
        samples: ``n`` samples.
        features: Shape ``(n, d)``.
    """
    return in_each_domain(
        samples,
        LABELS,
        lambda domain, rows: _read_again(domain, samples.where(rows), features[rows]),
    )


def _read_again(domain: str, samples: Samples, features: NDArray[np.floating]) -> Finding:
    present, labels = np.unique(samples.label, return_inverse=True)
    try:
        proba = _out_of_fold(features, labels, samples.group)
    except ValueError as reason:  # StudyError is one
        return cannot_ask(LABELS, domain, reason)
    sure = sure_class(labels, proba)
    doubtful = np.flatnonzero((sure != labels) & (sure >= 0))
    own, other = (proba[doubtful, of[doubtful]] for of in (labels, sure))
    names = [samples.classes[k] for k in present]
    images: list[Image] = [
        {
            "path": samples.name_of(row),
            "label": names[labels[row]],
            "seems": names[sure[row]],
            "probability": round(float(proba[row, sure[row]]), 4),
        }
        for row in doubtful[np.argsort(own - other, kind="stable")].tolist()
    ]
    return _finding(domain, len(samples), images)


def _out_of_fold(
    features: NDArray[np.floating], labels: NDArray[np.intp], groups: NDArray[np.str_]
) -> NDArray[np.float64]:
    """Probabilities of linear heads of the other patients, shape ``(n, K)``.

    Raises:
        StudyError: They know nothing, and would be sure of the wrong class as often as of
            the right one; or there are too few patients to see.
    """
    able = label_probe(features, labels, groups, draws=_DRAWS)
    if able.p > _LEVEL:
        raise StudyError(
            f"the features tell the label no better than chance, AUC {able.auc:.2f} "
            f"(p {able.p:.3f} by relabelling patients)"
        )
    source = Source(features=features, labels=labels, groups=groups)
    # Stratified: a head that saw no patient of a class would be sure of the others.
    return source.held_out(patient_folds(labels, groups, seed=0))


def _finding(domain: str, n: int, images: list[Image]) -> Finding:
    if not images:
        found = f"none of {n} images looks labelled wrongly to heads of the other patients"
        return Finding(check=LABELS, severity=OK, where=domain, found=found)
    first = "; ".join(
        f"{image['path']} (seems {image['seems']}, {image['probability']:.2f})"
        for image in images[:_SHOWN]
    )
    more = f"; and {len(images) - _SHOWN} more" if len(images) > _SHOWN else ""
    changes = Counter(f"{image['label']} seems {image['seems']}" for image in images)
    return Finding(
        check=LABELS,
        severity=NOTE,
        where=domain,
        found=f"{len(images)} of {counted(n, 'image')} {are(len(images))} probably "
        "labelled wrongly, as heads of the other patients see them",
        named=f"{first}{more}",
        advice="Have them read again. To drop them unread would drop what the head gets wrong, "
        "and flatter it",
        values={"images_of_domain": n, "counts": dict(changes), "images": images},
    )
