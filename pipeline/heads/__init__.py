"""The heads that can be put on cached features: one table.

Every head keeps scikit-learn's contract: the constructor stores, ``fit`` learns
``name_``, ``clone`` works, ``predict_proba`` gives ``(n, K)``. Features arrive
treated (see ``pipeline.heads.preprocessing``). Heads that hold rows out while they are fitted
take the patients as ``groups``. Heads that need torch import it only when they are fitted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UnknownNameError

if TYPE_CHECKING:
    from pipeline.heads.preprocessing import TreatedRows


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """One kind of head.

    Attributes:
        make: Seed to an unfitted classifier with the defaults of this project.
        about: For people, a line.
        seeded: Whether another seed gives another head.
        grid: Parameters to choose between by inner cross-validation, with their values;
            the defaults are taken where it is empty.
        grouped: Whether ``fit`` takes the patients of the rows, because it holds some out.
        engine: How it is trained, an entry of ``ENGINES`` in ``pipeline.heads.search``.
        dtype: What its fit makes of the features: taken so, they are not copied once more.
            None: its fit takes from :class:`pipeline.heads.preprocessing.TreatedRows` itself.
        together: Whether fits of it may run at the same time: it keeps all to itself, and one
            core each serves it best. Some of scikit-learn's share a random generator.
    """

    make: Callable[[int], Any]
    about: str
    seeded: bool = False
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    grouped: bool = False
    engine: str = "alone"
    dtype: type[np.floating[Any]] | None = np.float32
    together: bool = False

    def given(self, X: "TreatedRows") -> Any:
        """What its ``fit`` is called with."""
        return X if self.dtype is None else X.take(slice(None), self.dtype)

    def patients(self, group: NDArray[np.str_]) -> dict[str, NDArray[np.str_]]:
        """What its ``fit`` is called with beside: the patients, if it holds some out."""
        return {"groups": group} if self.grouped else {}


def make_head(name: str, *, seed: int, **parameters: Any) -> Any:
    """An unfitted head.

    Args:
        name: An entry of ``HEADS``.
        seed: Used by the heads that draw.
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
    from pipeline.heads.logistic import LogisticHead

    return LogisticHead()


def _ridge(_: int) -> Any:
    from pipeline.heads.ridge import RidgeHead

    return RidgeHead()


def _lda(_: int) -> Any:
    from pipeline.heads.discriminant import DiscriminantHead

    return DiscriminantHead()


def _prototype(_: int) -> Any:
    from pipeline.heads.prototype import PrototypeHead

    return PrototypeHead()


def _svm(_: int) -> Any:
    from sklearn.svm import SVC

    from pipeline.heads.calibrated import CalibratedHead

    # Of rows in many dimensions a linear kernel separates with little C; RBF's scores saturate.
    candidates = [
        *({"kernel": "linear", "C": C} for C in (1e-3, 1e-2)),
        *({"kernel": "rbf", "C": C} for C in (1.0, 10.0)),
    ]
    return CalibratedHead(SVC(), candidates=candidates)


def _knn(_: int) -> Any:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(n_neighbors=15, algorithm="brute")


def _forest(seed: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(n_estimators=100, n_jobs=-1, random_state=seed)


def _boosting(seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    # A tenth of the features for each split: a tenth of the time, and no worse on features
    # that say much the same. Bins of a few dozen rows each cost a third less than the finest.
    # Stopping early would hold rows out without regard to patients.
    return HistGradientBoostingClassifier(
        max_iter=50,
        max_leaf_nodes=8,
        max_features=0.1,
        max_bins=63,
        early_stopping=False,
        random_state=seed,
    )


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
            seeded=True,
            grid={"learning_rate": (1e-4, 1e-3)},
            grouped=True,
            engine="stacked",
            together=True,
        ),
        # More features than rows: with scikit-learn's C = 1 the fit split is separated
        # perfectly and the probabilities elsewhere are far too sure.
        "linear": HeadSpec(
            make=_linear,
            about="logistic regression, its L2 penalty chosen by inner cross-validation",
            grid={"C": (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0, 10.0)},
            engine="path",
        ),
        "ridge": HeadSpec(
            make=_ridge,
            about="ridge regression on the classes, exact hold-out",
            grouped=True,
            together=True,
        ),
        "lda": HeadSpec(
            make=_lda,
            about="linear discriminant, shrunk as Ledoit-Wolf say or by half",
            grid={"shrinkage": ("auto", 0.5)},
            together=True,
        ),
        "prototype": HeadSpec(make=_prototype, about="nearest class mean by cosine", grouped=True),
        "svm": HeadSpec(
            make=_svm,
            about="support vectors, linear or RBF, sigmoid-calibrated",
            grouped=True,
            dtype=None,
        ),
        "knn": HeadSpec(
            make=_knn,
            about="nearest neighbours",
            grid={"n_neighbors": (5, 15, 45), "weights": ("uniform", "distance")},
        ),
        # No grid: its defaults are hardly ever far from the best, and a fit takes seconds.
        "forest": HeadSpec(make=_forest, about="100 random trees", seeded=True),
        "boosting": HeadSpec(
            make=_boosting,
            about="gradient boosting of small trees on histograms",
            seeded=True,
            grid={"learning_rate": (0.05, 0.2)},
            dtype=np.float64,
            together=True,
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
