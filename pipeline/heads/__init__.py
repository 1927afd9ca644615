"""The heads that can be put on cached features: one table.

Every head keeps scikit-learn's contract: the constructor stores, ``fit`` learns
``name_``, ``clone`` works, ``predict_proba`` gives ``(n, K)``. Features arrive
standardised. Heads that need torch import it only when they are fitted.
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
        seeded: Whether another seed gives another head.
        grid: Parameters to choose between by inner cross-validation, with their values;
            the defaults are taken where it is empty.
    """

    make: Callable[[int], Any]
    about: str
    seeded: bool = False
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


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


def _lda(_: int) -> Any:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    return LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")


def _svm(_: int) -> Any:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.svm import SVC

    # The margin has no probability of its own: a sigmoid fitted out of fold gives it one.
    return CalibratedClassifierCV(SVC(), ensemble=False, cv=5)


def _knn(_: int) -> Any:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(n_neighbors=15)


def _forest(seed: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(n_estimators=300, n_jobs=-1, random_state=seed)


def _prior(_: int) -> Any:
    from sklearn.dummy import DummyClassifier

    return DummyClassifier(strategy="prior")


#: To add a head: a factory above and one line here; the contract tests run over the table.
HEADS: Mapping[str, HeadSpec] = MappingProxyType(
    {
        "mlp": HeadSpec(
            make=_mlp, about="Linear(d, 256), ReLU, Dropout(0.5), Linear(256, K)", seeded=True
        ),
        # More features than rows: with scikit-learn's C = 1 the fit split is separated
        # perfectly and the probabilities elsewhere are far too sure.
        "linear": HeadSpec(
            make=_linear,
            about="logistic regression, its L2 penalty chosen by inner cross-validation",
            grid={"C": (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0, 10.0)},
        ),
        "lda": HeadSpec(make=_lda, about="linear discriminant, Ledoit-Wolf shrinkage"),
        "svm": HeadSpec(make=_svm, about="RBF support vectors, sigmoid-calibrated"),
        "knn": HeadSpec(make=_knn, about="15 nearest neighbours"),
        "forest": HeadSpec(make=_forest, about="300 random trees", seeded=True),
        "prior": HeadSpec(make=_prior, about="the fit split's class shares, whatever the image"),
    }
)
