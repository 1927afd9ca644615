"""Heads that a study file names: a scikit-learn classifier, or one of ours changed."""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.data.patients import patient_folds
from pipeline.errors import StudyError, UnknownNameError
from pipeline.heads import HEADS, HeadSpec
from pipeline.heads.base import Head
from pipeline.study import CustomHead


class CalibratedHead(Head):
    """A classifier without probabilities, calibrated on patients that were held out.

    Args:
        estimator: Unfitted classifier of scikit-learn with ``decision_function``.
        random_state: Of the folds.

    Attributes:
        classes_: Class labels, shape ``(K,)``.
        estimator_: Of scikit-learn: fitted on all rows, with a sigmoid fitted out of fold.
    """

    def __init__(self, estimator: Any, *, random_state: int = 0) -> None:
        self.estimator = estimator
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Fit features ``(n, d)`` to labels ``(n,)``, patients ``(n,)`` held out whole.

        Raises:
            ValueError: A class has fewer than two patients, or what the estimator says.
        """
        from sklearn.base import clone
        from sklearn.calibration import CalibratedClassifierCV

        self.classes_, labels = np.unique(y, return_inverse=True)
        patients = np.arange(len(labels)) if groups is None else np.asarray(groups)
        folds = patient_folds(labels, patients, seed=self.random_state)
        calibrated = CalibratedClassifierCV(clone(self.estimator), cv=folds, ensemble=False)
        self.estimator_ = calibrated.fit(X, labels)
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Class probabilities ``(n, K)`` of features ``(n, d)``."""
        return np.asarray(self.estimator_.predict_proba(X))


def spec_of(head: CustomHead) -> HeadSpec:
    """How a head of a study is made.

    Raises:
        StudyError: It cannot be made as it is written.
    """
    where = f"[head.{head.name}]"
    if head.name in HEADS:
        raise StudyError(f"{where}: the name is taken; choose another than {', '.join(HEADS)}")
    if bool(head.estimator) == bool(head.base):
        raise StudyError(f'{where}: write either estimator = "sklearn..." or base = "mlp"')
    return _based(head, where) if head.base else _estimator(head, where)


def _based(head: CustomHead, where: str) -> HeadSpec:
    if head.base not in HEADS:
        raise StudyError(f"{where}: {UnknownNameError('base', head.base, HEADS)}")
    base, given = HEADS[head.base], dict(head.parameters)
    _check(given, base.make(0).get_params(), where)
    return replace(
        base,
        make=lambda seed: base.make(seed).set_params(**given),
        about=f"{head.base} with {given}",
        grid={k: v for k, v in base.grid.items() if k not in given},
    )


def _estimator(head: CustomHead, where: str) -> HeadSpec:
    kind, given = _class_of(head.estimator, where), dict(head.parameters)
    allowed = inspect.signature(kind).parameters
    _check(given, allowed, where)
    missing = [p.name for p in allowed.values() if p.default is p.empty and p.name not in given]
    if missing:
        raise StudyError(f"{where}: {head.estimator} needs {', '.join(missing)}")
    stochastic = "random_state" in allowed and "random_state" not in given
    plain = hasattr(kind(**given), "predict_proba")

    def make(seed: int) -> Any:
        estimator = kind(**given, **({"random_state": seed} if stochastic else {}))
        return estimator if plain else CalibratedHead(estimator, random_state=seed)

    return HeadSpec(
        make=make,
        about=f"{head.estimator} with {given}",
        stochastic=stochastic,
        scikit_learn=True,
        groups=not plain,
    )


def _class_of(path: str, where: str) -> Any:
    """A public classifier of scikit-learn; nothing else is imported."""
    from sklearn.base import ClassifierMixin

    module, _, name = path.rpartition(".")
    parts = path.split(".")
    if parts[0] != "sklearn" or len(parts) < 3 or any(not p or p[0] == "_" for p in parts):
        raise StudyError(f"{where} estimator = {path!r}: allowed is sklearn.MODULE.CLASS")
    try:
        kind = getattr(import_module(module), name)
    except (ImportError, AttributeError) as cause:
        raise StudyError(
            f"{where} estimator = {path!r}: scikit-learn has none ({cause})"
        ) from cause
    ours = inspect.isclass(kind) and kind.__module__.startswith("sklearn.")
    if not ours or not issubclass(kind, ClassifierMixin):
        raise StudyError(f"{where} estimator = {path!r} is no classifier of scikit-learn")
    return kind


def _check(given: Mapping[str, Any], allowed: Any, where: str) -> None:
    if unknown := sorted(set(given) - set(allowed)):
        raise StudyError(
            f"unknown parameter {unknown[0]!r} in {where}; allowed: {', '.join(sorted(allowed))}"
        )
