"""Train one kind of head for a whole comparison: parameters chosen, all seeds fitted.

Parameters are chosen by folds of patients of the rows given, by log loss. ``linear``
and ``mlp`` have engines that do all their fits together; every other head is fitted
one at a time, as scikit-learn does it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold

from pipeline.heads import HEADS, make_head
from pipeline.heads.logistic import LogisticHead, solve_path
from pipeline.heads.mlp import MLPHead

FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What heads are trained on: the fit split, nothing else.

    Attributes:
        X: Standardised features, shape ``(n, d)``, float32.
        y: Labels 0 to K - 1, shape ``(n,)``.
        group: Patients, shape ``(n,)``.
        seeds: One head of each seeded kind is trained for each; the first also
            makes the folds.
    """

    X: NDArray[np.float32]
    y: NDArray[np.int64]
    group: NDArray[np.str_]
    seeds: tuple[int, ...]

    def folds(self) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """Row numbers (in, out) of each fold; no patient is in two.

        Raises:
            ValueError: A class has fewer patients than two.
        """
        patients = min(len(np.unique(self.group[self.y == k])) for k in np.unique(self.y))
        if patients < 2:  # noqa: PLR2004 - in the fold and out of it
            raise ValueError("a class has fewer than two patients: no folds can be made")
        folds = StratifiedGroupKFold(min(FOLDS, patients), shuffle=True, random_state=self.seeds[0])
        return list(folds.split(self.X, self.y, self.group))


def train_head(name: str, problem: Problem) -> list[Any]:
    """Fitted classifiers: one for each seed where the head is seeded, else one.

    Raises:
        UnknownNameError: No such head.
        ValueError: The head cannot be fitted to these rows.
    """
    return _TOGETHER.get(name, _one_by_one)(name, problem)


def _one_by_one(name: str, problem: Problem) -> list[Any]:
    seeds = problem.seeds if HEADS[name].seeded else problem.seeds[:1]
    heads = []
    for seed in seeds:
        head = make_head(name, seed=seed)
        if grid := HEADS[name].grid:
            head = GridSearchCV(head, dict(grid), cv=problem.folds(), scoring="neg_log_loss")
        heads.append(head.fit(problem.X, problem.y))
    return heads


def _linear(name: str, problem: Problem) -> list[Any]:
    """All penalties on all folds at once, then the best penalty on all rows."""
    C = np.asarray(HEADS[name].grid["C"])
    folds = problem.folds()
    weights = np.ones((len(folds), len(C), len(problem.X)))
    for fold, (_, out) in enumerate(folds):
        weights[fold][:, out] = 0.0
    path = solve_path(
        problem.X,
        problem.y,
        C=np.tile(C, len(folds)),
        weights=weights.reshape(-1, len(problem.X)),
        tol=1e-3,
    )
    loss = np.zeros(len(C))
    proba = path.proba(problem.X).reshape(len(folds), len(C), len(problem.X), -1)
    for fold, (_, out) in enumerate(folds):
        sure = proba[fold][:, out, problem.y[out]]
        loss -= np.log(np.maximum(sure, 1e-15)).sum(axis=1)
    return [LogisticHead(C=float(C[loss.argmin()])).fit(problem.X, problem.y)]


def _mlp(name: str, problem: Problem) -> list[Any]:
    heads: list[MLPHead] = [make_head(name, seed=seed) for seed in problem.seeds]
    return list(MLPHead.fit_all(heads, problem.X, problem.y))


_TOGETHER: Mapping[str, Callable[[str, Problem], list[Any]]] = MappingProxyType(
    {"linear": _linear, "mlp": _mlp}
)
