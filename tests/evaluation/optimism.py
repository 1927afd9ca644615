"""How much too good a value out of fold is whose penalty was chosen on all rows of the folds.

A linear head; patients of one to four images, features of 64 columns of which eight tell the
classes apart. ``python -m tests.evaluation.optimism`` prints the mean over many data sets of
two values, each less that of a penalty chosen anew inside each fold: of the penalty that is best
on all rows, and of the one that is best on the other folds, which is what stage 2 takes.
"""

import sys

import numpy as np

from pipeline.data.patients import patient_folds
from pipeline.evaluation.metrics import score
from pipeline.heads import HEADS
from pipeline.heads.logistic import make_logistic
from pipeline.heads.search import chosen_elsewhere

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


def by_penalty(X, label, group, seed):
    """Held-out probabilities of each penalty, and the folds."""
    folds = list(patient_folds(label, group, seed=seed))
    return np.stack([out_of_fold(X, label, folds, c) for c in PENALTIES]), folds


def best_of(proba, label):
    """Number of the penalty of the lowest log loss."""
    return int(np.argmin([score("log_loss", label, one) for one in proba]))


def optimism(rng, patients: int, distance: float):
    """Accuracy and AUROC of both, less those of a penalty chosen in each fold."""
    X, label, group = data_of(rng, patients, distance)
    proba, folds = by_penalty(X, label, group, 0)
    elsewhere = chosen_elsewhere(proba, label, [outside for _, outside in folds])
    nested = np.zeros_like(elsewhere)
    for inside, outside in folds:
        again, _ = by_penalty(X[inside], label[inside], group[inside], 1)
        head = make_logistic(PENALTIES[best_of(again, label[inside])])
        nested[outside] = head.fit(X[inside], label[inside]).predict_proba(X[outside])
    return [
        score(m, label, one) - score(m, label, nested)
        for one in (proba[best_of(proba, label)], elsewhere)
        for m in ("accuracy", "auroc")
    ]


def main(repeats: int) -> None:
    """Print the optimism in points, with its standard error."""
    print("| patients | distance | all rows: accuracy | AUROC | other folds: accuracy | AUROC |")
    print("|---|---|---|---|---|---|")
    for patients in (40, 100, 300):
        for distance in (0.4, 0.8):
            rng = np.random.default_rng(patients)
            found = 100 * np.array([optimism(rng, patients, distance) for _ in range(repeats)])
            mean, error = found.mean(axis=0), found.std(axis=0) / np.sqrt(repeats)
            cells = (f"{m:+.2f} ({e:.2f})" for m, e in zip(mean, error, strict=True))
            print(f"| {patients} | {distance} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
