"""The heads that can be put on cached features: one table.

Every head keeps scikit-learn's contract: the constructor stores, ``fit`` learns
``name_``, ``clone`` works, ``predict_proba`` gives ``(n, K)``. Features arrive
preprocessed (see ``pipeline.heads.preprocessing``). Heads that hold rows out while they are
fitted take the patients as ``groups``. Heads that need torch import it when they are fitted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import MappingProxyType
from typing import Any

from pipeline.study import CustomHead


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """One kind of head.

    Attributes:
        make: Seed to an unfitted classifier with the defaults of this project.
        about: A line, from which a person knows what is fitted; another text is another head.
        stochastic: Whether another seed gives another head.
        grid: Parameters to choose between by inner cross-validation, with their values;
            the defaults are taken where it is empty.
        groups: Whether ``fit`` takes the patients of the rows, because it holds some out.
        scikit_learn: Whether it needs scikit-learn, which takes a second to import.
        curves: Whether ``fit`` takes validation rows, to note how the training went.
        path: From heads that differ in the grid's parameters, rows, labels and other rows to
            the probabilities of the other rows by each head, faster than one at a time; None:
            each is fitted alone.
    """

    make: Callable[[int], Any]
    about: str
    stochastic: bool = False
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    groups: bool = False
    scikit_learn: bool = False
    curves: bool = False
    path: Callable[..., Any] | None = None


def all_heads(custom: tuple[CustomHead, ...]) -> Mapping[str, HeadSpec]:
    """``HEADS`` and the heads of a study.

    Raises:
        StudyError: A head cannot be made as it is written.
    """
    added = {head.name: late("pipeline.heads.custom.spec_of")(head) for head in custom}
    return MappingProxyType({**HEADS, **added})


def late(path: str) -> Callable[..., Any]:
    """A function or class that is imported when it is called: names alone need no library."""

    def call(*arguments: Any, **parameters: Any) -> Any:
        module, _, name = path.rpartition(".")
        return getattr(import_module(module), name)(*arguments, **parameters)

    return call


def _always(path: str, **parameters: Any) -> Callable[[int], Any]:
    return lambda _seed: late(path)(**parameters)


def _of_seed(path: str) -> Callable[[int], Any]:
    return lambda seed: late(path)(random_state=seed)


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
            grid={"C": (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0, 10.0)},
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
            grid={"shrinkage": ("auto", 0.5)},
            path=late("pipeline.heads.closed_form.discriminant_path"),
        ),
        "prototype": HeadSpec(
            make=_always("pipeline.heads.closed_form.PrototypeHead"),
            about="nearest class mean by cosine",
            groups=True,
        ),
        "svm": HeadSpec(
            make=_always("pipeline.heads.svm.SVMHead"),
            scikit_learn=True,
            about="support vectors, linear or RBF, sigmoid-calibrated",
            groups=True,
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
            grid={"n_neighbors": (5, 15, 45)},
            path=late("pipeline.heads.neighbours.neighbours_path"),
        ),
        # No grid: its defaults are hardly ever far from the best.
        "forest": HeadSpec(
            make=lambda seed: late("sklearn.ensemble.ExtraTreesClassifier")(
                n_estimators=20, random_state=seed
            ),
            scikit_learn=True,
            about="20 extremely random trees a seed",
            stochastic=True,
        ),
        "boosting": HeadSpec(
            make=_of_seed("pipeline.heads.boosting.BoostingHead"),
            scikit_learn=True,
            about="gradient boosting of small trees on 32 components and 64 features",
            stochastic=True,
        ),
        # The smoothing decides how sure it is: with features that repeat each other, far too sure.
        "naive_bayes": HeadSpec(
            make=_always("sklearn.naive_bayes.GaussianNB"),
            scikit_learn=True,
            about="Gaussian naive Bayes",
            grid={"var_smoothing": (1e-9, 1e-2, 1.0)},
        ),
        "prior": HeadSpec(
            make=_always("pipeline.heads.base.PriorHead"),
            about="the fit split's class shares, whatever the image",
        ),
    }
)
