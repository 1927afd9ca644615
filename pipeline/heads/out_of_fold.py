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

from pipeline.data.patients import Fold, patient_folds
from pipeline.heads import HeadSpec
from pipeline.heads.calibrated import CalibratedHead
from pipeline.heads.parallel import folded
from pipeline.heads.preprocessing import TreatedRows, fit_treatment, predict_in_blocks


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


@dataclass(frozen=True, kw_only=True)
class FitSplit:
    """The rows that heads may see, in the features of everything: no copy is made of them.

    Attributes:
        X: Features as the backbone gave them, shape ``(N, d)``.
        rows: Which of them are the fit split, shape ``(n,)``.
        y: Labels 0 to K - 1 of these, shape ``(n,)``.
        group: Their patients.
        seed: Of the first repeat, for its folds and its heads; it rises by one.
    """

    X: NDArray[np.float32]
    rows: NDArray[np.intp]
    y: NDArray[np.int64]
    group: NDArray[np.str_]
    seed: int

    def folds(self, repeat: int) -> list[Fold]:
        """Row numbers (in, out), of ``n``, of each fold; labels and patients alone decide."""
        return patient_folds(self.y, self.group, seed=self.seed + repeat)


def out_of_fold(
    models: Mapping[str, Any], fit: FitSplit, *, repeats: int, specs: Mapping[str, HeadSpec]
) -> OutOfFold:
    """Fit every head again on each fold, and ask it about the rest.

    Args:
        models: By name, a fitted pipeline of a treatment and a head.
        fit: What may be seen.
        repeats: How often all rows are divided anew, 1 or more.
        specs: By the same name, how its head is fitted.

    Raises:
        ValueError: A class has fewer patients than two.
    """
    divisions = [fit.folds(repeat) for repeat in range(repeats)]
    proba, failures = {}, {}
    for name, model in models.items():
        try:
            proba[name] = np.stack(
                [
                    _divided(model, specs[name], fit, folds, fit.seed + i)
                    for i, folds in enumerate(divisions)
                ]
            )
        except ValueError as cause:
            failures[name] = str(cause)
    return OutOfFold(fold=_numbers(divisions, len(fit.y)), proba=proba, failures=failures)


def _numbers(divisions: list[list[Fold]], n: int) -> NDArray[np.intp]:
    fold = np.zeros((len(divisions), n), np.intp)
    for repeat, folds in enumerate(divisions):
        for number, (_, out) in enumerate(folds):
            fold[repeat, out] = number
    return fold


def at_chosen(model: Any) -> Any:
    """An unfitted copy of a classifier, with the parameters that its fit chose."""
    found = clone(model)
    steps = getattr(model, "steps", None)
    if steps is None:
        if isinstance(model, CalibratedHead):
            found.set_params(candidates=(model.best_params_,))
        return found
    found.steps = [(name, at_chosen(step)) for name, step in steps]
    return found


def with_seed(model: Any, seed: int) -> Any:
    """The same unfitted classifier, drawing from another seed."""
    names = [n for n in model.get_params() if n.split("__")[-1] == "random_state"]
    drawing = {n: seed for n in names if model.get_params()[n] is not None}
    return model.set_params(**drawing)


def _divided(
    model: Any, spec: HeadSpec, fit: FitSplit, folds: list[Fold], seed: int
) -> NDArray[np.float64]:
    classes = int(fit.y.max()) + 1
    proba = np.zeros((len(fit.y), classes))

    def ask(inside: NDArray[np.intp], outside: NDArray[np.intp]) -> None:
        y = fit.y[inside]
        if len(np.unique(y)) < classes:
            raise ValueError("a fold leaves no patient of some class to learn from")
        again = with_seed(at_chosen(model), seed)
        treatment, head = again[0], again[-1]
        rows = fit.rows[inside]
        fit_treatment(treatment, fit.X, rows)
        X = spec.given(TreatedRows(fit.X, rows, treatment))
        head.fit(X, y, **spec.patients(fit.group[inside]))
        proba[outside] = predict_in_blocks(again, fit.X, fit.rows[outside])

    folded(ask, folds, len(fit.y) * fit.X.shape[1] if spec.together else None)
    return proba
