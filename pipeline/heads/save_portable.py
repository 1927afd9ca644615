"""From fitted estimators to parts: a table by the estimator's type.

An estimator is known by the library it comes from and its class name, and exactly so: a
subclass may compute something else. To add one: a function and one line in ``PORTABLE``.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.save_part import Array, Part


class NotPortableError(ValueError):
    """An estimator has no form that can be saved; the message says which and why."""


def to_part(estimator: Any) -> Part:
    """The part that computes what a fitted estimator computes.

    Args:
        estimator: A classifier with ``predict_proba``, or a step before it.

    Raises:
        NotPortableError: It is in no table, or has a setting that no part knows.
    """
    name = name_of(estimator)
    if name not in PORTABLE:
        raise NotPortableError(f"{name} has no portable form; known: {', '.join(PORTABLE)}")
    return PORTABLE[name](estimator)


def name_of(estimator: Any) -> str:
    """Library and class, such as ``sklearn.SVC``."""
    return f"{type(estimator).__module__.partition('.')[0]}.{type(estimator).__name__}"


def chain(*parts: Part) -> Part:
    """Parts one after another."""
    return Part(kind="chain", parts=parts)


def _require(estimator: Any, **allowed: tuple[Any, ...]) -> None:
    for name, values in allowed.items():
        got = getattr(estimator, name)
        if not any(got is value or got == value for value in values):
            raise NotPortableError(
                f"{name_of(estimator)} with {name} = {got!r} has no portable form; "
                f"that has only {', '.join(map(repr, values))}"
            )


def _pipeline(estimator: Any) -> Part:
    steps = [step for _, step in estimator.steps if step is not None and step != "passthrough"]
    return chain(*map(to_part, steps))


def _scaler(estimator: Any) -> Part:
    zeros, ones = np.zeros(estimator.n_features_in_), np.ones(estimator.n_features_in_)
    mean = estimator.mean_ if estimator.with_mean else zeros
    scale = estimator.scale_ if estimator.with_std else ones
    return Part(kind="standardise", arrays={"mean": mean, "scale": scale})


def _normalizer(estimator: Any) -> Part:
    _require(estimator, norm=("l2",))
    return Part(kind="l2")


def _whitener(estimator: Any) -> Part:
    arrays = {name: getattr(estimator, f"{name}_") for name in ("mean", "components", "scale")}
    return Part(kind="project", arrays=arrays)


def _linear(estimator: Any) -> Part:
    """Scores to a sigmoid for two classes, a softmax for more."""
    scores = _scores(estimator)
    link = "sigmoid" if len(scores.arrays["coef"]) == 1 else "softmax"
    return chain(scores, Part(kind=link))


def _ridge(estimator: Any) -> Part:
    arrays = {"coef": np.ascontiguousarray(estimator.coef_.T), "intercept": estimator.intercept_}
    return chain(Part(kind="double"), Part(kind="linear", arrays=arrays), _rule(estimator.sigmoid_))


def _prototype(estimator: Any) -> Part:
    return chain(Part(kind="cosine", arrays={"means": estimator.means_}), _rule(estimator.sigmoid_))


def _calibrated_head(estimator: Any) -> Part:
    """Support vectors, or a linear model's scores; of two classes the first has zero."""
    scorer = estimator.estimator_
    name = name_of(scorer)
    if name not in _SCORERS:
        raise NotPortableError(
            f"{name} with a sigmoid has no portable form; known: {', '.join(_SCORERS)}"
        )
    parts = [_SCORERS[name](scorer)]
    if len(estimator.classes_) == 2:
        parts.append(Part(kind="against zero"))
    return chain(*parts, _rule(estimator.sigmoid_))


def _rule(rule: Any) -> Part:
    """See :class:`pipeline.heads.calibrated.Sigmoid`."""
    offset = np.asarray(rule.offset, np.float64)
    return Part(kind="scaled softmax", arrays={"offset": offset}, settings={"scale": rule.scale})


def _scores(estimator: Any) -> Part:
    """One row of coefficients for each score; some estimators drop that axis for one score."""
    arrays = {
        "coef": np.atleast_2d(estimator.coef_),
        "intercept": np.atleast_1d(estimator.intercept_),
    }
    return Part(kind="linear", arrays=arrays)


def _identity(estimator: Any) -> Part:
    _require(estimator, func=(None,))
    return Part(kind="same")


def _blocks(estimator: Any) -> Part:
    scale = estimator.scale_
    return Part(kind="standardise", arrays={"mean": np.zeros_like(scale), "scale": scale})


def _mlp(estimator: Any) -> Part:
    parts: list[Part] = []
    for weights, bias in estimator.trained_.layers:
        parts += [Part(kind="relu")] if parts else []
        arrays = {"coef": np.ascontiguousarray(weights.T), "intercept": bias}
        parts.append(Part(kind="linear", arrays=arrays))
    return chain(*parts, Part(kind="double"), Part(kind="softmax"))


def _calibrated(estimator: Any) -> Part:
    """Support vectors with a sigmoid; several calibrated ones are averaged."""
    _require(estimator, method=("sigmoid",))
    members = []
    for one in estimator.calibrated_classifiers_:
        if name_of(one.estimator) != "sklearn.SVC":
            raise NotPortableError(
                f"{name_of(one.estimator)} with a calibration has no portable form; only SVC has"
            )
        if len(one.estimator.classes_) != len(estimator.classes_):
            raise NotPortableError("a calibration fold lacked a class")
        arrays = {
            "a": np.array([c.a_ for c in one.calibrators], np.float64),
            "b": np.array([c.b_ for c in one.calibrators], np.float64),
        }
        members.append(chain(_svc(one.estimator), Part(kind="calibrated", arrays=arrays)))
    return members[0] if len(members) == 1 else Part(kind="mean", parts=tuple(members))


def _svc(estimator: Any) -> Part:
    _require(
        estimator, kernel=("rbf", "linear"), break_ties=(False,), decision_function_shape=("ovr",)
    )
    arrays = {
        "vectors": _short(estimator.support_vectors_),
        "count": estimator.n_support_.astype(np.int32),
        "dual": estimator.dual_coef_,
        "intercept": estimator.intercept_,
    }
    settings = {"kernel": estimator.kernel, "gamma": float(estimator._gamma)}  # noqa: SLF001
    return Part(kind="support vectors", arrays=arrays, settings=settings)


def _knn(estimator: Any) -> Part:
    _require(estimator, metric=("minkowski", "euclidean"), weights=("uniform", "distance"))
    if estimator.metric == "minkowski":
        _require(estimator, p=(2,))
    arrays = {"rows": _short(estimator._fit_X), "label": estimator._y.astype(np.int32)}  # noqa: SLF001
    settings: dict[str, int | float | str] = {
        "k": int(estimator.n_neighbors),
        "weights": str(estimator.weights),
        "classes": len(estimator.classes_),
    }
    return Part(kind="neighbours", arrays=arrays, settings=settings)


def _forest(estimator: Any) -> Part:
    trees = [one.tree_ for one in estimator.estimators_]
    shares = [tree.value[:, 0] / tree.value[:, 0].sum(axis=1, keepdims=True) for tree in trees]
    columns = {
        "left": [tree.children_left for tree in trees],
        "right": [tree.children_right for tree in trees],
        "feature": [tree.feature for tree in trees],
    }
    arrays = _flat(columns) | {
        "threshold": _rounded_down(np.concatenate([tree.threshold for tree in trees])),
        "value": np.concatenate(shares).astype(np.float32),
    }
    return Part(kind="forest", arrays=arrays)


def _boosting(estimator: Any) -> Part:
    if estimator.is_categorical_ is not None and np.any(estimator.is_categorical_):
        raise NotPortableError("boosting with categorical features has no portable form")
    nodes = [one.nodes for row in estimator._predictors for one in row]  # noqa: SLF001
    leaf = [one["is_leaf"].astype(bool) for one in nodes]
    columns = {
        name: [
            np.where(at, -1, one[field].astype(np.int64))
            for one, at in zip(nodes, leaf, strict=True)
        ]
        for name, field in (("left", "left"), ("right", "right"), ("feature", "feature_idx"))
    }
    baseline = np.ravel(estimator._baseline_prediction).astype(np.float64)  # noqa: SLF001
    arrays = _flat(columns) | {
        "threshold": np.concatenate([one["num_threshold"] for one in nodes]),
        "value": np.concatenate([one["value"] for one in nodes])[:, None],
        "baseline": baseline,
    }
    scores = Part(kind="boosting", arrays=arrays, settings={"groups": len(baseline)})
    return chain(scores, Part(kind="sigmoid" if len(baseline) == 1 else "softmax"))


def _naive_bayes(estimator: Any) -> Part:
    arrays = {
        "prior": estimator.class_prior_,
        "mean": estimator.theta_,
        "variance": estimator.var_,
    }
    return Part(kind="naive bayes", arrays=arrays)


def _prior(estimator: Any) -> Part:
    _require(estimator, strategy=("prior",))
    return Part(kind="prior", arrays={"prior": np.asarray(estimator.class_prior_, np.float64)})


def _flat(columns: Mapping[str, list[Array]]) -> dict[str, Array]:
    """Trees one after another: children get the number of their tree's first node added."""
    lengths = [len(column) for column in columns["left"]]
    root = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int32)
    found: dict[str, Array] = {"root": root, "feature": np.concatenate(columns["feature"])}
    for name in ("left", "right"):
        parts = [np.where(c < 0, -1, c + r) for c, r in zip(columns[name], root, strict=True)]
        found[name] = np.concatenate(parts)
    return {name: column.astype(np.int32) for name, column in found.items()}


def _rounded_down(threshold: NDArray[np.float64]) -> NDArray[np.float32]:
    """The largest float32 that is not above: ``x <= t`` is the same for every float32 x."""
    near = threshold.astype(np.float32)
    return np.where(near > threshold, np.nextafter(near, np.float32(-np.inf)), near)


def _short(rows: Array) -> Array:
    """Float32 where nothing is lost by it: features came as float32."""
    near = rows.astype(np.float32)
    return near if (near == rows).all() else np.asarray(rows, np.float64)


#: What may stand before the sigmoid of a ``CalibratedHead``.
_SCORERS: Mapping[str, Callable[[Any], Part]] = MappingProxyType(
    {
        "sklearn.SVC": _svc,
        "sklearn.LinearSVC": _scores,
        "sklearn.RidgeClassifier": _scores,
        "sklearn.SGDClassifier": _scores,
        "sklearn.Perceptron": _scores,
    }
)
#: By library and class.
PORTABLE: Mapping[str, Callable[[Any], Part]] = MappingProxyType(
    {
        "sklearn.Pipeline": _pipeline,
        "sklearn.StandardScaler": _scaler,
        "sklearn.Normalizer": _normalizer,
        "sklearn.FunctionTransformer": _identity,
        "pipeline.BlockScaler": _blocks,
        "pipeline.Whitener": _whitener,
        "pipeline.LogisticHead": _linear,
        "sklearn.LogisticRegression": _linear,
        "sklearn.LinearDiscriminantAnalysis": _linear,
        "pipeline.DiscriminantHead": _linear,
        "pipeline.MLPHead": _mlp,
        "pipeline.RidgeHead": _ridge,
        "pipeline.PrototypeHead": _prototype,
        "pipeline.CalibratedHead": _calibrated_head,
        "sklearn.CalibratedClassifierCV": _calibrated,
        "sklearn.KNeighborsClassifier": _knn,
        "sklearn.RandomForestClassifier": _forest,
        "sklearn.ExtraTreesClassifier": _forest,
        "sklearn.HistGradientBoostingClassifier": _boosting,
        "sklearn.GaussianNB": _naive_bayes,
        "sklearn.DummyClassifier": _prior,
    }
)
