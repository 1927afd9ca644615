"""The heads that can be put on cached features: one table.

Every head keeps scikit-learn's contract: the constructor stores, ``fit`` learns
``name_``, ``clone`` works, ``predict_proba`` gives ``(n, K)``. Features arrive
preprocessed (see ``pipeline.heads.preprocessing``). Heads that hold rows out while they are
fitted take the patients as ``groups``. Heads that need torch import it when they are fitted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from pipeline.errors import UnknownNameError


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """One kind of head.

    Attributes:
        make: Seed to an unfitted classifier with the defaults of this project.
        about: For people, a line.
        stochastic: Whether another seed gives another head.
        grid: Parameters to choose between by inner cross-validation, with their values;
            the defaults are taken where it is empty.
        groups: Whether ``fit`` takes the patients of the rows, because it holds some out.
        curves: Whether ``fit`` takes validation rows, to note how the training went.
        path: From heads that differ in the grid's parameters, rows, labels and other rows to
            the probabilities of the other rows by each head, faster than one at a time; None:
            each is fitted alone.
        parallel: Whether fits may run at the same time. Those of some of scikit-learn's
            estimators share a random generator.
    """

    make: Callable[[int], Any]
    about: str
    stochastic: bool = False
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    groups: bool = False
    curves: bool = False
    path: Callable[..., Any] | None = None
    parallel: bool = True


def make_head(name: str, *, seed: int, **parameters: Any) -> Any:
    """An unfitted head.

    Args:
        name: An entry of ``HEADS``.
        seed: Used by stochastic heads.
        parameters: Replace defaults; see the classifier's ``get_params``.

    Raises:
        UnknownNameError: No such head; the message lists the table.
    """
    if name not in HEADS:
        raise UnknownNameError("head", name, HEADS)
    return HEADS[name].make(seed).set_params(**parameters)


def _mlp(seed: int) -> Any:
    from pipeline.heads.mlp import MLPHead

    return MLPHead(random_state=seed)


def _linear(_: int) -> Any:
    from pipeline.heads.logistic import make_logistic

    return make_logistic()


def _linear_path(*arguments: Any) -> Any:
    from pipeline.heads.logistic import logistic_path

    return logistic_path(*arguments)


def _ridge(_: int) -> Any:
    from pipeline.heads.closed_form import RidgeHead

    return RidgeHead()


def _lda(_: int) -> Any:
    from pipeline.heads.closed_form import DiscriminantHead

    return DiscriminantHead()


def _lda_path(*arguments: Any) -> Any:
    from pipeline.heads.closed_form import discriminant_path

    return discriminant_path(*arguments)


def _prototype(_: int) -> Any:
    from pipeline.heads.closed_form import PrototypeHead

    return PrototypeHead()


def _svm(_: int) -> Any:
    from pipeline.heads.svm import SVMHead

    return SVMHead()


def _knn(_: int) -> Any:
    from pipeline.heads.neighbours import make_neighbours

    return make_neighbours()


def _knn_path(*arguments: Any) -> Any:
    from pipeline.heads.neighbours import neighbours_path

    return neighbours_path(*arguments)


def _forest(seed: int) -> Any:
    from pipeline.heads.trees import ForestHead

    return ForestHead(random_state=seed)


def _boosting(seed: int) -> Any:
    from pipeline.heads.trees import BoostingHead

    return BoostingHead(random_state=seed)


def _naive_bayes(_: int) -> Any:
    from sklearn.naive_bayes import GaussianNB

    return GaussianNB()


def _prior(_: int) -> Any:
    from sklearn.dummy import DummyClassifier

    return DummyClassifier(strategy="prior")


#: To add a head: a factory above and one line here; the contract tests run over the table.
HEADS: Mapping[str, HeadSpec] = MappingProxyType(
    {
        "mlp": HeadSpec(
            make=_mlp,
            about="Linear(d, 256), ReLU, Dropout(0.5), Linear(256, K)",
            stochastic=True,
            curves=True,
        ),
        # More features than rows: with scikit-learn's C = 1 the fit split is separated
        # perfectly and the probabilities elsewhere are far too sure.
        "linear": HeadSpec(
            make=_linear,
            about="logistic regression, its L2 penalty chosen by inner cross-validation",
            grid={"C": (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0, 10.0)},
            path=_linear_path,
        ),
        "ridge": HeadSpec(
            make=_ridge, about="ridge regression on the classes, exact hold-out", groups=True
        ),
        "lda": HeadSpec(
            make=_lda,
            about="linear discriminant, shrunk by half or as Ledoit and Wolf estimate",
            grid={"shrinkage": ("auto", 0.5)},
            path=_lda_path,
        ),
        "prototype": HeadSpec(make=_prototype, about="nearest class mean by cosine", groups=True),
        "svm": HeadSpec(
            make=_svm, about="support vectors, linear or RBF, sigmoid-calibrated", groups=True
        ),
        "knn": HeadSpec(
            make=_knn,
            about="nearest neighbours",
            grid={"n_neighbors": (5, 15, 45)},
            path=_knn_path,
        ),
        # No grid: its defaults are hardly ever far from the best.
        "forest": HeadSpec(make=_forest, about="20 extremely random trees a seed", stochastic=True),
        "boosting": HeadSpec(
            make=_boosting,
            about="gradient boosting of small trees on 32 components and 64 features",
            stochastic=True,
        ),
        # The smoothing decides how sure it is: with features that repeat each other, far too sure.
        "naive_bayes": HeadSpec(
            make=_naive_bayes,
            about="Gaussian naive Bayes",
            grid={"var_smoothing": (1e-9, 1e-2, 1.0)},
        ),
        "prior": HeadSpec(make=_prior, about="the fit split's class shares, whatever the image"),
    }
)
