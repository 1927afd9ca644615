"""How much too good a value out of fold is, by where its penalty was chosen.

A linear head; patients of one to four images, features of 64 columns of which eight tell the
classes apart. ``python -m tests.evaluation.optimism [RUNS] [--jobs PROCESSES]`` prints means over
data sets: of the penalty that is best on all rows, and of the one that is best on the other
folds, each less the value of a penalty chosen anew in each fold; and of that one less what its
heads reach on 2,000 further patients.
"""

from functools import partial

import numpy as np

from pipeline.data.patients import patient_folds
from pipeline.evaluation.metrics import score
from pipeline.heads import HEADS
from pipeline.heads.logistic import logistic_path, make_logistic
from pipeline.heads.search import cross_fitted_choice
from tests.evaluation.coverage import in_processes, parser

PENALTIES = [choice["C"] for choice in HEADS["linear"].choices]
METRICS = ("accuracy", "auroc")


def data_of(rng, patients: int, distance: float):
    """Features, labels and patients."""
    group = np.repeat(np.arange(patients), rng.integers(1, 5, patients))
    label = (np.arange(patients) % 2)[group]
    effect = rng.normal(size=(patients, 64))[group]
    X = np.sqrt(0.5) * (effect + rng.normal(size=effect.shape))
    X[:, :8] += distance * (label[:, None] - 0.5)
    return X.astype(np.float32), label.astype(np.int64), group.astype(str)


def proba_of(X, label, other, penalties=PENALTIES):
    """Probabilities ``(penalties, m, 2)`` of other rows."""
    return logistic_path([make_logistic(C) for C in penalties], X, label, other)


def by_penalty(X, label, folds):
    """Held-out probabilities of each penalty."""
    proba = np.zeros((len(PENALTIES), len(label), 2))
    for train, test in folds:
        proba[:, test] = proba_of(X[train], label[train], X[test])
    return proba


def best_of(proba, label):
    """Number of the penalty of the lowest log loss."""
    return int(np.argmin([score("log_loss", label, values) for values in proba]))


def optimism(patients: int, distance: float, seed: int):
    """Accuracy and AUROC of both above nested ones, and of those above further patients'."""
    rng = np.random.default_rng([seed, patients])
    X, label, group = data_of(rng, patients, distance)
    further, label_of_further, _ = data_of(rng, 2000, distance)
    folds = patient_folds(label, group, seed=0)
    proba = by_penalty(X, label, folds)
    nested, reached = np.zeros_like(proba[0]), []
    for train, test in folds:
        again = patient_folds(label[train], group[train], seed=1)
        best = best_of(by_penalty(X[train], label[train], again), label[train])
        both = np.concatenate([X[test], further])
        values = proba_of(X[train], label[train], both, PENALTIES[best : best + 1])[0]
        nested[test] = values[: len(test)]
        reached.append([score(m, label_of_further, values[len(test) :]) for m in METRICS])
    elsewhere = cross_fitted_choice(proba, label, [test for _, test in folds])
    all_rows, others, chosen_anew = (
        np.array([score(m, label, values) for m in METRICS])
        for values in (proba[best_of(proba, label)], elsewhere, nested)
    )
    truth = np.mean(reached, axis=0)
    return np.concatenate([all_rows - chosen_anew, others - chosen_anew, chosen_anew - truth])


def main() -> None:
    """Print the optimism in points, with its standard error."""
    options = parser(__doc__, 100).parse_args()
    ways = ("all rows", "other folds", "anew in each fold")
    print("| patients | distance |", *(f"{way}: accuracy | AUROC |" for way in ways))
    print("|---|---|" + "---|" * 6, flush=True)
    with in_processes(options.jobs) as run:
        for patients in (40, 100, 300, 600):
            for distance in (0.4, 0.8):
                jobs = (partial(optimism, patients, distance, s) for s in range(options.runs))
                points = 100 * np.array(list(run(jobs)))
                error = points.std(axis=0) / np.sqrt(options.runs)
                cells = (f"{m:+.2f} ({e:.2f})" for m, e in zip(points.mean(0), error, strict=True))
                print(f"| {patients} | {distance} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
