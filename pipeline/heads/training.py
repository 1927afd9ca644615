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
from sklearn.base import clone
from sklearn.model_selection import ParameterGrid

from pipeline.errors import UnknownNameError
from pipeline.heads import HEADS, HeadSpec
from pipeline.heads.blocks import predict_in_blocks
from pipeline.heads.folds import Fold, patient_folds
from pipeline.heads.logistic import LogisticHead, solve_path
from pipeline.heads.mlp import MLPHead, Watched
from pipeline.heads.side_by_side import folded

T = TypeVar("T")
_TINY = 1e-15


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What heads are trained on: the fit split, nothing else.

    Attributes:
        X: Treated features, shape ``(n, d)``, float32.
        y: Labels 0 to K - 1, shape ``(n,)``.
        group: Patients, shape ``(n,)``.
        seeds: One head of each seeded kind is trained for each; the first also
            makes the folds.
        watched: Rows that curves are drawn of; see :class:`pipeline.heads.mlp.Watched`,
            which cannot reach a weight.
    """

    X: NDArray[np.float32]
    y: NDArray[np.int64]
    group: NDArray[np.str_]
    seeds: tuple[int, ...]
    watched: Watched | None = field(default=None)

    @cached_property
    def _folds(self) -> list[Fold]:
        return patient_folds(self.y, self.group, self.seeds[0])

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
    extra = {"groups": problem.group} if spec.grouped else {}

    def fit(seed: int) -> Any:
        return spec.make(seed).set_params(**chosen).fit(problem.X, problem.y, **extra)

    return _folded(spec, fit, [(seed,) for seed in _seeds(spec, problem)], problem)


def _losses(spec: HeadSpec, choices: Sequence[Mapping[str, Any]], problem: Problem) -> list[float]:
    """Of each choice; one that the rows of a fold cannot bear (more neighbours than rows) loses.

    Raises:
        ValueError: They can bear none.
    """
    losses, refused = [], ValueError("no choice")
    for choice in choices:
        try:
            losses.append(_loss(spec, choice, problem))
        except ValueError as cause:
            losses.append(float("inf"))
            refused = cause
    if not np.isfinite(losses).any():
        raise refused
    return losses


def _loss(spec: HeadSpec, parameters: Mapping[str, Any], problem: Problem) -> float:
    """Log loss of rows held out by patient, summed."""
    head = spec.make(problem.seeds[0]).set_params(**parameters)

    def one(in_: NDArray[np.intp], out: NDArray[np.intp]) -> float:
        extra = {"groups": problem.group[in_]} if spec.grouped else {}
        fitted = clone(head).fit(problem.X[in_], problem.y[in_], **extra)
        return _log_loss(predict_in_blocks(fitted, problem.X[out]), problem.y[out])

    return sum(_folded(spec, one, problem.folds(), problem))


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
    weights = np.ones((len(folds), len(C), len(problem.X)), np.float32)
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
    for fold, (_, out) in enumerate(folds):
        part = path.some(slice(fold * len(C), (fold + 1) * len(C)))
        proba = part.proba(problem.X[out])
        loss += [_log_loss(p, problem.y[out]) for p in proba]
    head: LogisticHead = spec.make(problem.seeds[0])
    head.set_params(C=float(C[loss.argmin()])).fit(problem.X, problem.y)
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
        X, y = problem.X[out], problem.y[out]
        return [_log_loss(predict_in_blocks(head, X), y) for head in tried]

    folds = problem.folds() if len(choices) > 1 else []
    each = folded(losses, folds, problem.X.size) or [[0.0]]
    chosen = choices[int(np.sum(each, axis=0).argmin())]
    heads: list[MLPHead] = [spec.make(seed).set_params(**chosen) for seed in _seeds(spec, problem)]
    return list(
        MLPHead.fit_all(heads, problem.X, problem.y, problem.group, watched=problem.watched)
    )


def _seeds(spec: HeadSpec, problem: Problem) -> tuple[int, ...]:
    return problem.seeds if spec.seeded else problem.seeds[:1]


#: How heads are trained, by ``HeadSpec.engine``.
ENGINES: Mapping[str, Callable[[HeadSpec, Problem], list[Any]]] = MappingProxyType(
    {"alone": _alone, "path": _path, "stacked": _stacked}
)
