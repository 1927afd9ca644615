"""The table of heads, the classifiers on stored features.

Every head keeps scikit-learn's contract: the constructor stores parameters, ``fit`` sets
``name_``, ``clone`` works, ``predict_proba`` gives ``(n, K)``. Features are preprocessed before
(see ``pipeline.heads.base``). Heads that hold rows out during fitting take the patients as
``groups``. Heads that need torch import it when they are fitted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """One kind of head.

    Attributes:
        make: From a seed to an unfitted classifier with the defaults of this project.
        about: One line that says what is fitted; a changed text means a changed head.
        stochastic: Whether another seed gives another head.
        seeds_out_of_fold: Most seeds of a stochastic head that are fitted out of fold. A forest
            of one seed errs by several points more than that of three; a perceptron by less than
            one, and others would take a third of the time of a run.
        choices: Parameters to choose from by inner cross-validation; a single ``{}`` means the
            defaults.
        groups: Whether ``fit`` takes the patients of the rows, because it holds some out.
        scikit_learn: Whether it needs scikit-learn, which takes a second to import.
        curves: Whether ``fit`` takes validation rows, to record learning curves.
        fit_path: Fits heads that differ in these parameters at once: from heads, rows, labels and
            other rows to the probabilities of the other rows by each head. None: each is
            fitted alone.
        calibrated: Whether ``fit_path`` gives scores instead, and the head takes the
            ``calibration`` that turns them into probabilities.
    """

    make: Callable[[int], Any]
    about: str
    stochastic: bool = False
    seeds_out_of_fold: int = 3
    choices: Sequence[Mapping[str, Any]] = ({},)
    groups: bool = False
    scikit_learn: bool = False
    curves: bool = False
    fit_path: Callable[..., Any] | None = None
    calibrated: bool = False


def lazy_import(path: str) -> Callable[..., Any]:
    """A function or class that is imported when it is called, so that names need no library."""

    def call(*arguments: Any, **parameters: Any) -> Any:
        module, _, name = path.rpartition(".")
        return getattr(import_module(module), name)(*arguments, **parameters)

    return call


def _always(path: str, **parameters: Any) -> Callable[[int], Any]:
    return lambda _seed: lazy_import(path)(**parameters)


def _of_seed(path: str, **parameters: Any) -> Callable[[int], Any]:
    return lambda seed: lazy_import(path)(**parameters, random_state=seed)


def _each(parameter: str, *values: Any) -> tuple[dict[str, Any], ...]:
    return tuple({parameter: value} for value in values)


#: To add a head: one line here; the contract tests run over the table.
HEADS: Mapping[str, HeadSpec] = MappingProxyType(
    {
        "mlp": HeadSpec(
            make=_of_seed("pipeline.heads.mlp.MLPHead"),
            about="Linear(d, 256), ReLU, Dropout(0.5), Linear(256, K)",
            stochastic=True,
            seeds_out_of_fold=1,
            curves=True,
        ),
        # More features than rows: with scikit-learn's C = 1 the fit split is separated
        # perfectly and the probabilities elsewhere are far too sure.
        "linear": HeadSpec(
            make=_always("pipeline.heads.logistic.make_logistic"),
            scikit_learn=True,
            about="logistic regression, its L2 penalty chosen by inner cross-validation",
            choices=_each("C", 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0, 10.0),
            fit_path=lazy_import("pipeline.heads.logistic.logistic_path"),
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
            fit_path=lazy_import("pipeline.heads.closed_form.discriminant_path"),
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
            fit_path=lazy_import("pipeline.heads.scikit_learn.svm_path"),
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
            fit_path=lazy_import("pipeline.heads.scikit_learn.neighbours_path"),
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
