"""The table of heads, the classifiers on stored features.

Every head keeps scikit-learn's contract: the constructor stores parameters, ``fit`` sets
``name_``, ``clone`` works, ``predict_proba`` gives ``(n, K)``. Features are preprocessed before
(see ``pipeline.heads.base``). Heads that hold rows out during fitting take the patients as
``groups``. Heads that need torch import it when they are fitted.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from types import MappingProxyType
from typing import Any

from pipeline.errors import StudyError, UnknownNameError
from pipeline.study import CustomHead


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """One kind of head.

    Attributes:
        make: From a seed to an unfitted classifier with the defaults of this project.
        about: One line that says what is fitted; a changed text means a changed head.
        stochastic: Whether another seed gives another head.
        choices: Parameters to choose from by inner cross-validation; a single ``{}`` means the
            defaults.
        groups: Whether ``fit`` takes the patients of the rows, because it holds some out.
        scikit_learn: Whether it needs scikit-learn, which takes a second to import.
        curves: Whether ``fit`` takes validation rows, to record learning curves.
        path: Fits heads that differ in these parameters at once: from heads, rows, labels and
            other rows to the probabilities of the other rows by each head. None: each is
            fitted alone.
        calibrated: Whether ``path`` gives scores instead, and the head takes the
            ``calibration`` that turns them into probabilities.
    """

    make: Callable[[int], Any]
    about: str
    stochastic: bool = False
    choices: Sequence[Mapping[str, Any]] = ({},)
    groups: bool = False
    scikit_learn: bool = False
    curves: bool = False
    path: Callable[..., Any] | None = None
    calibrated: bool = False


def late(path: str) -> Callable[..., Any]:
    """A function or class that is imported when it is called, so that names need no library."""

    def call(*arguments: Any, **parameters: Any) -> Any:
        module, _, name = path.rpartition(".")
        return getattr(import_module(module), name)(*arguments, **parameters)

    return call


def _always(path: str, **parameters: Any) -> Callable[[int], Any]:
    return lambda _seed: late(path)(**parameters)


def _of_seed(path: str, **parameters: Any) -> Callable[[int], Any]:
    return lambda seed: late(path)(**parameters, random_state=seed)


def _each(parameter: str, *values: Any) -> tuple[dict[str, Any], ...]:
    return tuple({parameter: value} for value in values)


#: To add a head: one line here; the contract tests run over the table.
HEADS: Mapping[str, HeadSpec] = MappingProxyType(
    {
        "mlp": HeadSpec(
            make=_of_seed("pipeline.heads.mlp.MLPHead"),
            about="Linear(d, 256), ReLU, Dropout(0.5), Linear(256, K)",
            stochastic=True,
            curves=True,
        ),
        # More features than rows: with scikit-learn's C = 1 the fit split is separated
        # perfectly and the probabilities elsewhere are far too sure.
        "linear": HeadSpec(
            make=_always("pipeline.heads.logistic.make_logistic"),
            scikit_learn=True,
            about="logistic regression, its L2 penalty chosen by inner cross-validation",
            choices=_each("C", 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0, 10.0),
            path=late("pipeline.heads.logistic.logistic_path"),
        ),
        "ridge": HeadSpec(
            make=_always("pipeline.heads.closed_form.RidgeHead"),
            about="ridge regression on the classes, exact hold-out",
            groups=True,
        ),
        "lda": HeadSpec(
            make=_always("pipeline.heads.closed_form.DiscriminantHead"),
            about="linear discriminant, shrunk by half or as Ledoit and Wolf estimate",
            choices=_each("shrinkage", "auto", 0.5),
            path=late("pipeline.heads.closed_form.discriminant_path"),
        ),
        "prototype": HeadSpec(
            make=_always("pipeline.heads.closed_form.PrototypeHead"),
            about="nearest class mean by cosine",
            groups=True,
        ),
        "svm": HeadSpec(
            make=_always("pipeline.heads.scikit_learn.SVMHead"),
            scikit_learn=True,
            about="support vectors, linear or RBF, sigmoid-calibrated",
            groups=True,
            # Of rows in many dimensions a linear kernel separates with little C, and the scores
            # of RBF saturate.
            choices=(
                {"kernel": "linear", "C": 1e-3},
                {"kernel": "linear", "C": 1e-2},
                {"kernel": "rbf", "C": 1.0},
                {"kernel": "rbf", "C": 10.0},
            ),
            path=late("pipeline.heads.scikit_learn.svm_path"),
            calibrated=True,
        ),
        "knn": HeadSpec(
            make=_always(
                "sklearn.neighbors.KNeighborsClassifier",
                n_neighbors=15,
                weights="distance",
                algorithm="brute",
            ),
            scikit_learn=True,
            about="nearest neighbours",
            choices=_each("n_neighbors", 5, 15, 45),
            path=late("pipeline.heads.scikit_learn.neighbours_path"),
        ),
        # No choices: its defaults are nearly always close to the best.
        "forest": HeadSpec(
            make=_of_seed("sklearn.ensemble.ExtraTreesClassifier", n_estimators=20),
            scikit_learn=True,
            about="20 extremely random trees a seed",
            stochastic=True,
        ),
        "boosting": HeadSpec(
            make=_of_seed("pipeline.heads.scikit_learn.BoostingHead"),
            scikit_learn=True,
            about="gradient boosting of small trees on 32 components and 64 features",
            stochastic=True,
        ),
        # The smoothing limits its confidence, which is far too high with redundant features.
        "naive_bayes": HeadSpec(
            make=_always("sklearn.naive_bayes.GaussianNB"),
            scikit_learn=True,
            about="Gaussian naive Bayes",
            choices=_each("var_smoothing", 1e-9, 1e-2, 1.0),
        ),
        "prior": HeadSpec(
            make=_always("pipeline.heads.base.PriorHead"),
            about="the fit split's class shares, whatever the image",
        ),
    }
)


def all_heads(custom: tuple[CustomHead, ...]) -> Mapping[str, HeadSpec]:
    """``HEADS`` and the study's heads: scikit-learn classifiers, or ours with other parameters.

    Raises:
        StudyError: A head cannot be made from its settings.
    """
    return MappingProxyType({**HEADS, **{head.name: _custom(head) for head in custom}})


def _custom(head: CustomHead) -> HeadSpec:
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
        choices=_without(base.choices, given),
    )


def _without(
    choices: Sequence[Mapping[str, Any]], given: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The remaining choices if some parameters are given."""
    left: list[dict[str, Any]] = []
    for choice in choices:
        free = {k: v for k, v in choice.items() if k not in given}
        left += [free] if free not in left else []
    return left


def _estimator(head: CustomHead, where: str) -> HeadSpec:
    kind, given = _class_of(head.estimator, where), dict(head.parameters)
    allowed = inspect.signature(kind).parameters
    _check(given, allowed, where)
    missing = [p.name for p in allowed.values() if p.default is p.empty and p.name not in given]
    if missing:
        raise StudyError(f"{where}: {head.estimator} needs {', '.join(missing)}")
    if not hasattr(kind(**given), "predict_proba"):
        raise StudyError(f"{where}: {head.estimator} gives no probabilities; choose one that does")
    stochastic = "random_state" in allowed and "random_state" not in given
    return HeadSpec(
        make=lambda seed: kind(**given, **({"random_state": seed} if stochastic else {})),
        about=f"{head.estimator} with {given}",
        stochastic=stochastic,
        scikit_learn=True,
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
    is_public = inspect.isclass(kind) and kind.__module__.startswith("sklearn.")
    if not is_public or not issubclass(kind, ClassifierMixin):
        raise StudyError(f"{where} estimator = {path!r} is no classifier of scikit-learn")
    return kind


def _check(given: Mapping[str, Any], allowed: Any, where: str) -> None:
    if unknown := sorted(set(given) - set(allowed)):
        raise StudyError(
            f"unknown parameter {unknown[0]!r} in {where}; allowed: {', '.join(sorted(allowed))}"
        )
