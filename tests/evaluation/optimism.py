"""How much too good a value out of fold is whose penalty was chosen on all rows of the folds.

A linear head; patients of one to four images, features of 64 columns of which eight tell the
classes apart. ``python -m tests.evaluation.optimism`` prints the mean over many data sets of
the value as stage 2 takes it, less that of a penalty chosen inside each fold.
"""

import sys

import numpy as np

from pipeline.data.patients import patient_folds
from pipeline.evaluation.metrics import score
from pipeline.heads import HEADS
from pipeline.heads.logistic import make_logistic

PENALTIES = HEADS["linear"].grid["C"]


def data_of(rng, patients: int, distance: float):
    """Features, labels and patients."""
    group = np.repeat(np.arange(patients), rng.integers(1, 5, patients))
    label = (np.arange(patients) % 2)[group]
    own = rng.normal(size=(patients, 64))[group]
    X = np.sqrt(0.5) * (own + rng.normal(size=own.shape))
    X[:, :8] += distance * (label[:, None] - 0.5)
    return X, label.astype(np.int64), group.astype(str)


def out_of_fold(X, label, folds, penalty):
    """Probabilities of heads of the other patients."""
    proba = np.zeros((len(label), 2))
    for inside, outside in folds:
        head = make_logistic(penalty).fit(X[inside], label[inside])
        proba[outside] = head.predict_proba(X[outside])
    return proba


def chosen(X, label, group, seed):
    """The penalty of the lowest log loss out of fold, and its probabilities."""
    folds = list(patient_folds(label, group, seed=seed))
    tried = {c: out_of_fold(X, label, folds, c) for c in PENALTIES}
    best = min(tried, key=lambda c: score("log_loss", label, tried[c]))
    return best, tried[best]


def optimism(rng, patients: int, distance: float):
    """Accuracy and AUROC of the penalty of all rows, less those of one chosen in each fold."""
    X, label, group = data_of(rng, patients, distance)
    _, kept = chosen(X, label, group, 0)
    nested = np.zeros_like(kept)
    for inside, outside in patient_folds(label, group, seed=0):
        best, _ = chosen(X[inside], label[inside], group[inside], 1)
        head = make_logistic(best).fit(X[inside], label[inside])
        nested[outside] = head.predict_proba(X[outside])
    return [score(m, label, kept) - score(m, label, nested) for m in ("accuracy", "auroc")]


def main(repeats: int) -> None:
    """Print the optimism in points, with its standard error."""
    for patients in (40, 100, 300):
        for distance in (0.4, 0.8):
            rng = np.random.default_rng(patients)
            found = 100 * np.array([optimism(rng, patients, distance) for _ in range(repeats)])
            mean, error = found.mean(axis=0), found.std(axis=0) / np.sqrt(repeats)
            print(
                f"{patients} patients, distance {distance}: accuracy {mean[0]:+.2f} "
                f"({error[0]:.2f}), AUROC {mean[1]:+.2f} ({error[1]:.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
