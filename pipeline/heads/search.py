"""Train one kind of head for a whole comparison: parameters chosen, all seeds fitted.

Parameters are chosen by folds of patients of the rows given, by log loss. ``linear``
and ``mlp`` have engines that do all their fits together; ``ridge``, ``prototype`` and
``svm`` choose as they are fitted; every other head is fitted one at a time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import ParameterGrid

from pipeline.data.patients import Fold, patient_folds
from pipeline.errors import UnknownNameError
from pipeline.heads import HEADS, HeadSpec
from pipeline.heads.logistic import LogisticHead, solve_path
from pipeline.heads.mlp import MLPHead, Watched
from pipeline.heads.parallel import folded
from pipeline.heads.preprocessing import TreatedRows, predict_in_blocks

T = TypeVar("T")
_TINY = 1e-15


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What heads are trained on: the fit split, nothing else.

    Attributes:
        X: Features, shape ``(n, d)``, treated as they are taken.
        y: Labels 0 to K - 1, shape ``(n,)``.
        group: Patients, shape ``(n,)``.
        seeds: One head of each seeded kind is trained for each; the first also
            makes the folds.
        watched: Rows that curves are drawn of; see :class:`pipeline.heads.mlp.Watched`,
            which cannot reach a weight.
    """

    X: TreatedRows
    y: NDArray[np.int64]
    group: NDArray[np.str_]
    seeds: tuple[int, ...]
    watched: Watched | None = field(default=None)

    @cached_property
    def _folds(self) -> list[Fold]:
        return patient_folds(self.y, self.group, seed=self.seeds[0])

    def folds(self) -> list[Fold]:
        """Row numbers (in, out) of each fold; no patient is in two.

        Raises:
            ValueError: A class has fewer patients than two.
        """
        return self._folds


def train_head(name: str, problem: Problem, heads: Mapping[str, HeadSpec] = HEADS) -> list[Any]:
    """Fitted classifiers: one for each seed where the head is seeded, else one.

    Raises:
        UnknownNameError: No such head.
        ValueError: The head cannot be fitted to these rows.
    """
    if name not in heads:
        raise UnknownNameError("head", name, heads)
    return ENGINES[heads[name].engine](heads[name], problem)


def _alone(spec: HeadSpec, problem: Problem) -> list[Any]:
    """One fit after the other; what the first seed chooses serves all."""
    choices = list(ParameterGrid(dict(spec.grid)))
    losses = [0.0] if len(choices) == 1 else _losses(spec, choices, problem)
    chosen = choices[int(np.argmin(losses))]
    X = spec.given(problem.X)
    extra = spec.patients(problem.group)

    def fit(seed: int) -> Any:
        return spec.make(seed).set_params(**chosen).fit(X, problem.y, **extra)

    return _folded(spec, fit, [(seed,) for seed in _seeds(spec, problem)], problem)


def _losses(
    spec: HeadSpec, choices: Sequence[Mapping[str, Any]], problem: Problem
) -> NDArray[np.float64]:
    """Log loss of rows held out by patient, summed, of each choice.

    A choice that the rows of a fold cannot bear (more neighbours than rows) loses.

    Raises:
        ValueError: They can bear none.
    """
    refused: list[ValueError] = []

    def one(in_: NDArray[np.intp], out: NDArray[np.intp]) -> list[float]:
        X, y = spec.given(problem.X.of(in_)), problem.y[in_]
        extra = spec.patients(problem.group[in_])
        losses = []
        for choice in choices:
            head = spec.make(problem.seeds[0]).set_params(**choice)
            try:
                fitted = head.fit(X, y, **extra)
                proba = predict_in_blocks(fitted, problem.X, out)
                losses.append(_log_loss(proba, problem.y[out]))
            except ValueError as cause:
                refused.append(cause)
                losses.append(float("inf"))
        return losses

    total: NDArray[np.float64] = np.sum(_folded(spec, one, problem.folds(), problem), axis=0)
    if not np.isfinite(total).any():
        raise refused[-1]
    return total


def _folded(
    spec: HeadSpec, fit: Callable[..., T], folds: Sequence[tuple[Any, ...]], problem: Problem
) -> list[T]:
    return folded(fit, folds, problem.X.size if spec.together else None)


def _log_loss(proba: NDArray[np.float64], y: NDArray[np.int64]) -> float:
    return -float(np.log(np.maximum(proba[np.arange(len(y)), y], _TINY)).sum())


def _path(spec: HeadSpec, problem: Problem) -> list[Any]:
    """All penalties on all folds at once, then the best penalty on all rows."""
    if set(spec.grid) != {"C"}:
        return _alone(spec, problem)
    C = np.asarray(spec.grid["C"])
    folds = problem.folds()
    X = problem.X[:]
    weights = np.ones((len(folds), len(C), len(X)), np.float32)
    for fold, (_, out) in enumerate(folds):
        weights[fold][:, out] = 0.0
    path = solve_path(
        X,
        problem.y,
        C=np.tile(C, len(folds)),
        weights=weights.reshape(-1, len(X)),
        tol=1e-3,
    )
    loss = np.zeros(len(C))
    for fold, (_, out) in enumerate(folds):
        part = path.some(slice(fold * len(C), (fold + 1) * len(C)))
        proba = part.proba(X[out])
        loss += [_log_loss(p, problem.y[out]) for p in proba]
    head: LogisticHead = spec.make(problem.seeds[0])
    head.set_params(C=float(C[loss.argmin()])).fit(X, problem.y)
    mean = loss / len(problem.y)
    head.path_ = [{"C": c, "log_loss": m} for c, m in zip(C.tolist(), mean.tolist(), strict=True)]
    return [head]


def _stacked(spec: HeadSpec, problem: Problem) -> list[Any]:
    """All choices of a fold side by side, then all seeds of the best choice."""
    choices = list(ParameterGrid(dict(spec.grid)))

    def losses(in_: NDArray[np.intp], out: NDArray[np.intp]) -> list[float]:
        tried: list[MLPHead] = [
            spec.make(problem.seeds[0]).set_params(**choice) for choice in choices
        ]
        MLPHead.fit_all(tried, problem.X[in_], problem.y[in_], problem.group[in_])
        return [
            _log_loss(predict_in_blocks(head, problem.X, out), problem.y[out]) for head in tried
        ]

    folds = problem.folds() if len(choices) > 1 else []
    each = folded(losses, folds, problem.X.size) or [[0.0]]
    chosen = choices[int(np.sum(each, axis=0).argmin())]
    heads: list[MLPHead] = [spec.make(seed).set_params(**chosen) for seed in _seeds(spec, problem)]
    return list(
        MLPHead.fit_all(heads, problem.X[:], problem.y, problem.group, watched=problem.watched)
    )


def _seeds(spec: HeadSpec, problem: Problem) -> tuple[int, ...]:
    return problem.seeds if spec.seeded else problem.seeds[:1]


#: How heads are trained, by ``HeadSpec.engine``.
ENGINES: Mapping[str, Callable[[HeadSpec, Problem], list[Any]]] = MappingProxyType(
    {"alone": _alone, "path": _path, "stacked": _stacked}
)
