"""What heads say of rows of the fit split that they were not trained on.

Repeated, grouped, stratified folds: all heads on the same folds, and on the same seed
within a repeat, so that differences between them are paired. Each fit is made of the
fold's rows alone, the scaler too. The parameters are those that were chosen on the whole
fit split; that choice is not repeated.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from pipeline.heads.training import Problem


@dataclass(frozen=True, kw_only=True)
class OutOfFold:
    """Predictions out of fold of ``M`` heads on ``n`` rows, ``R`` times.

    Attributes:
        fold: Which fold of a repeat has the row outside, shape ``(R, n)``.
        proba: Of each head, shape ``(R, n, K)``.
        failures: Heads that could not be fitted in some fold, with the reason.
    """

    fold: NDArray[np.intp]
    proba: Mapping[str, NDArray[np.float64]]
    failures: Mapping[str, str]

    @property
    def folds(self) -> int:
        """Folds of a repeat."""
        return int(self.fold.max()) + 1


def out_of_fold(models: Mapping[str, Any], problem: Problem, *, repeats: int) -> OutOfFold:
    """Fit every head again on each fold, and ask it about the rest.

    Args:
        models: By name, a fitted classifier from features as the backbone gave them.
        problem: The fit split, features not scaled. Its first seed and those that follow
            it make the folds and the heads of the repeats.
        repeats: How often all rows are divided anew, 1 or more.

    Raises:
        ValueError: A class has fewer patients than two.
    """
    first = problem.seeds[0]
    divisions = [_folds(problem, first + repeat) for repeat in range(repeats)]
    proba, failures = {}, {}
    for name, model in models.items():
        try:
            proba[name] = np.stack(
                [
                    _divided(model, problem, folds, first + repeat)
                    for repeat, folds in enumerate(divisions)
                ]
            )
        except (ValueError, np.linalg.LinAlgError) as cause:
            failures[name] = str(cause)
    fold = np.zeros((repeats, len(problem.y)), np.intp)
    for repeat, folds in enumerate(divisions):
        for number, (_, out) in enumerate(folds):
            fold[repeat, out] = number
    return OutOfFold(fold=fold, proba=proba, failures=failures)


def at_chosen(model: Any) -> Any:
    """An unfitted copy of a classifier, with the parameters that its fit chose."""
    found = clone(model)
    steps = getattr(model, "steps", None)
    if steps is None:
        return clone(getattr(model, "best_estimator_", model))
    found.steps = [(name, at_chosen(step)) for name, step in steps]
    return found


def with_seed(model: Any, seed: int) -> Any:
    """The same unfitted classifier, drawing from another seed."""
    names = [n for n in model.get_params() if n.split("__")[-1] == "random_state"]
    drawing = {n: seed for n in names if model.get_params()[n] is not None}
    return model.set_params(**drawing)


def _folds(problem: Problem, seed: int) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    again = Problem(X=problem.X, y=problem.y, group=problem.group, seeds=(seed,))
    return again.folds()


def _divided(
    model: Any,
    problem: Problem,
    folds: list[tuple[NDArray[np.intp], NDArray[np.intp]]],
    seed: int,
) -> NDArray[np.float64]:
    proba = np.zeros((len(problem.y), int(problem.y.max()) + 1))
    for inside, outside in folds:
        head = with_seed(at_chosen(model), seed).fit(problem.X[inside], problem.y[inside])
        proba[outside] = head.predict_proba(problem.X[outside])
    return proba
