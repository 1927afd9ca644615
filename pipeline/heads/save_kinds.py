"""The kinds of parts that a saved head is made of, and what each computes: one table.

Everything is plain numpy, in the precision of the estimator that the arrays came from,
so that a head gives the same probabilities without the library that fitted it.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logsumexp, softmax

from pipeline.errors import ModelError
from pipeline.heads.save_kept_rows import (
    check_neighbours,
    check_vectors,
    neighbours,
    support_vectors,
)
from pipeline.heads.save_part import Array, Kind, Part
from pipeline.heads.save_trees import check_trees, leaf_values

_ANY = (-1e300, 1e300)
_POSITIVE = (1e-300, 1e300)
_MANY = (1, 100_000)
#: How far from 1 the probabilities of a row may sum, in whatever precision.
_SUM = 1e-3
_TINY = 1e-12


def predict_proba(part: Part, X: NDArray[np.float32]) -> NDArray[np.float64]:
    """Class probabilities ``(n, K)`` of features ``(n, d)`` as the backbone gave them.

    Raises:
        ModelError: What comes out are no probabilities.
    """
    with np.errstate(all="ignore"):  # what comes of it is looked at below
        found = np.asarray(apply(part, np.asarray(X, np.float32)), np.float64)
    if not np.isfinite(found).all() or (np.abs(found.sum(axis=1) - 1) > _SUM).any():
        raise ModelError("the head gives no probabilities: its file is damaged; fit it again")
    return found


def apply(part: Part, X: Array) -> Array:
    """What a part makes of rows ``(n, d)``."""
    return KINDS[part.kind].apply(part, X)


def _chain(part: Part, X: Array) -> Array:
    for step in part.parts:
        X = apply(step, X)
    return X


def _mean(part: Part, X: Array) -> Array:
    mean: Array = np.mean([apply(member, X) for member in part.parts], axis=0)
    return mean


def _standardise(part: Part, X: Array) -> Array:
    """In the precision of the rows, as scikit-learn's StandardScaler has it."""
    X = X - part.arrays["mean"].astype(X.dtype)
    return np.asarray(X / part.arrays["scale"].astype(X.dtype))


def _l2(_: Part, X: Array) -> Array:
    norm = np.sqrt(np.einsum("ij,ij->i", X, X))[:, None]
    return np.asarray(X / np.where(norm == 0, 1, norm).astype(X.dtype))


def _project(part: Part, X: Array) -> Array:
    """Principal components; centred after the projection, as the treatment does it."""
    a = part.arrays
    return np.asarray((X @ a["components"].T - a["mean"] @ a["components"].T) / a["scale"])


def _linear(part: Part, X: Array) -> Array:
    return np.asarray(X @ part.arrays["coef"].T + part.arrays["intercept"])


def _sigmoid(_: Part, scores: Array) -> Array:
    positive = expit(scores[:, 0])
    return np.column_stack([1 - positive, positive])


def _softmax(_: Part, scores: Array) -> Array:
    return np.asarray(softmax(scores, axis=1))


def _scaled_softmax(part: Part, scores: Array) -> Array:
    scaled = float(part.settings["scale"]) * scores + part.arrays["offset"]
    return np.asarray(softmax(scaled, axis=1))


def _against_zero(_: Part, scores: Array) -> Array:
    return np.column_stack([np.zeros(len(scores)), scores])


def _cosine(part: Part, X: Array) -> Array:
    """With each class mean, in float64; a row or mean of length zero has cosine 0."""
    means, rows = part.arrays["means"], X.astype(np.float64)
    length = np.maximum(np.linalg.norm(means, axis=1), _TINY)
    norm = np.maximum(np.linalg.norm(rows, axis=1), _TINY)
    return np.asarray(rows @ means.T / length / norm[:, None])


def _same(_: Part, X: Array) -> Array:
    return X


def _relu(_: Part, X: Array) -> Array:
    return np.maximum(X, 0)


def _double(_: Part, X: Array) -> Array:
    return X.astype(np.float64)


def _calibrated(part: Part, scores: Array) -> Array:
    """A sigmoid for each class, ``expit(-(a s + b))``, then shares of their sum."""
    p = expit(-(part.arrays["a"] * scores + part.arrays["b"]))
    if p.shape[1] == 1:
        return np.hstack([1 - p, p])
    total = p.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(p, total, out=np.full_like(p, 1 / p.shape[1]), where=total != 0))


def _forest(part: Part, X: Array) -> Array:
    """Mean of the leaves' class shares; the trees compare in float32."""
    total = leaf_values(part, X.astype(np.float32))[:, 0]
    return np.asarray(total / total.sum(axis=1, keepdims=True))


def _boosting(part: Part, X: Array) -> Array:
    """Raw scores: the baseline and the sum of the leaves, one column a group of trees."""
    return leaf_values(part, X.astype(np.float64))[:, :, 0] + part.arrays["baseline"]


def _check_boosting(part: Part, sizes: Mapping[str, int]) -> str | None:
    groups = part.settings["groups"]
    if groups != sizes["g"] or sizes["T"] % sizes["g"] or sizes["V"] != 1:
        return f"{sizes['T']} trees and {sizes['g']} baselines for {groups} scores"
    return check_trees(part, sizes)


def _naive_bayes(part: Part, X: Array) -> Array:
    """Summed in the order and precision of scikit-learn: float32 shows in the fifth digit."""
    a = part.arrays
    columns = []
    for prior, mean, var in zip(a["prior"], a["mean"], a["variance"], strict=True):
        density = -0.5 * np.sum(np.log(2.0 * np.pi * var))
        columns.append(np.log(prior) + (density - 0.5 * np.sum((X - mean) ** 2 / var, axis=1)))
    joint = np.column_stack(columns)
    return np.asarray(np.exp(joint - logsumexp(joint, axis=1, keepdims=True)))


def _prior(part: Part, X: Array) -> Array:
    return np.tile(part.arrays["prior"].astype(np.float64), (len(X), 1))


def _above_zero(*names: str) -> Callable[[Part, Mapping[str, int]], str | None]:
    def check(part: Part, _: Mapping[str, int]) -> str | None:
        low = [name for name in names if (part.arrays[name] <= 0).any()]
        return f"{low[0]} has values that are not above 0" if low else None

    return check


_TREES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "root": ("int", "T"),
        "left": ("int", "N"),
        "right": ("int", "N"),
        "feature": ("int", "N"),
        "threshold": ("float", "N"),
    }
)
#: To add a kind: its computation above, and what it consists of here.
KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "chain": Kind(apply=_chain, parts=(1, 20), chain=True),
        "mean": Kind(apply=_mean, parts=(1, 1000)),
        "standardise": Kind(
            apply=_standardise,
            arrays={"mean": ("float", "d"), "scale": ("float", "d")},
            gives="d",
            check=_above_zero("scale"),
        ),
        "same": Kind(apply=_same, gives="d"),
        "l2": Kind(apply=_l2, gives="d"),
        "double": Kind(apply=_double, gives="d"),
        "relu": Kind(apply=_relu, gives="d"),
        "project": Kind(
            apply=_project,
            arrays={
                "mean": ("float", "d"),
                "components": ("float", "ed"),
                "scale": ("float", "e"),
            },
            gives="e",
            check=_above_zero("scale"),
        ),
        "linear": Kind(
            apply=_linear,
            arrays={"coef": ("float", "ed"), "intercept": ("float", "e")},
            gives="e",
        ),
        "sigmoid": Kind(apply=_sigmoid, gives="2", check=lambda _, s: _not(s["d"] == 1)),
        "softmax": Kind(apply=_softmax, gives="d"),
        "scaled softmax": Kind(
            apply=_scaled_softmax,
            arrays={"offset": ("float", "d")},
            settings={"scale": (0.0, 1e300)},
            gives="d",
        ),
        "against zero": Kind(apply=_against_zero, gives="2", check=lambda _, s: _not(s["d"] == 1)),
        "cosine": Kind(apply=_cosine, arrays={"means": ("float", "ed")}, gives="e"),
        "calibrated": Kind(
            apply=_calibrated,
            arrays={"a": ("float", "d"), "b": ("float", "d")},
            gives="K",
            check=lambda _, s: _not(s["d"] == (1 if s["K"] == 2 else s["K"])),
        ),
        "support vectors": Kind(
            apply=support_vectors,
            arrays={
                "vectors": ("float", "vd"),
                "count": ("int", "K"),
                "dual": ("float", "rv"),
                "intercept": ("float", "p"),
            },
            settings={"kernel": ("linear", "rbf"), "gamma": _POSITIVE},
            gives="scores",
            check=check_vectors,
            keeps_rows=True,
        ),
        "neighbours": Kind(
            apply=neighbours,
            arrays={"rows": ("float", "md"), "label": ("int", "m")},
            settings={"k": _ANY, "weights": ("uniform", "distance"), "classes": _MANY},
            gives="K",
            check=check_neighbours,
            keeps_rows=True,
        ),
        "forest": Kind(
            apply=_forest,
            arrays={**_TREES, "value": ("float", "NK")},
            gives="K",
            check=check_trees,
            may_be_infinite=("threshold",),
        ),
        "boosting": Kind(
            apply=_boosting,
            arrays={**_TREES, "value": ("float", "NV"), "baseline": ("float", "g")},
            settings={"groups": _MANY},
            gives="g",
            check=_check_boosting,
            may_be_infinite=("threshold",),
        ),
        "naive bayes": Kind(
            apply=_naive_bayes,
            arrays={"prior": ("float", "K"), "mean": ("float", "Kd"), "variance": ("float", "Kd")},
            gives="K",
            check=_above_zero("prior", "variance"),
        ),
        "prior": Kind(apply=_prior, arrays={"prior": ("float", "K")}, gives="K"),
    }
)


def _not(fits: bool) -> str | None:  # noqa: FBT001 - the one thing it is about
    return None if fits else "the scores that it gets are not those that it needs"
