"""DISDE: split a loss into "other images" and "other answers on the same images".

Both domains are compared on a density they share, s(x) proportional to p q / (p + q)
(Cai, Namkoong and Yadlowsky, arXiv 2303.02011). Where there is no such density, because
the domains hardly overlap, no number is given.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from pipeline.shift.effects import Gap, PatientDraws, draw_blocks, family
from pipeline.words import are, counted

#: Below this many effective images on either side, nothing is said.
MIN_ESS = 50.0
_FOLDS = 5
# With 1 the ratio is shrunk enough to move the middle term by +0.0035 on N(0, 1) against
# N(1.5, 1) at 400 images each; with 10 by -0.0002.
_INVERSE_PENALTY = 10.0
_TERMS = ("x_to_shared", "y_given_x", "shared_to_target")

Rows = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Side:
    """One domain, seen in a space in which both are compared."""

    phi: Rows
    """Shape (n, c): few columns, or there is no overlap to be found."""
    loss: NDArray[np.floating]
    """Shape (n,), in [0, 1]."""
    groups: NDArray[Any]
    """Shape (n,), patients."""
    draws: PatientDraws
    """Draws of these patients."""


@dataclass(frozen=True, kw_only=True)
class Disde:
    """Three terms that add up to the loss, or the reason why there are none."""

    terms: Mapping[str, Gap]
    """``x_to_shared``, ``y_given_x``, ``shared_to_target``; empty if refused."""
    ess_source: float
    """Effective number of source images on the shared density (Kish)."""
    ess_target: float
    """The same of the target."""
    overlap: float
    """2 integral p q / (p + q): 1 for equal domains, 0 for separate ones."""
    domain_auc: float
    """Out-of-fold AUC of telling the domains apart in this space."""
    refused: str | None = None
    """Why there are no terms."""


@dataclass(frozen=True, kw_only=True)
class _Ratios:
    """log q/p of every row from models that did not see its patient."""

    design: Rows
    """Shape (n, 1 + 2 c): a quadratic log ratio is exact for Gaussian domains."""
    is_target: NDArray[np.bool_]
    folds: NDArray[np.intp]
    coefficients: Rows
    """Shape (folds, 1 + 2 c)."""

    def fitted(self) -> Rows:
        """Shape (n,): on the data themselves."""
        scores = np.einsum("nc,nc->n", self.design, self.coefficients[self.folds])
        for fold in range(len(self.coefficients)):
            scores[self.folds == fold] -= logit(self.is_target[self.folds != fold].mean())
        return np.asarray(scores)

    def redrawn(self, weights: Rows) -> Rows:
        """Shape (b, n): refitted to each of b weightings ``(b, n)`` by one Newton step.

        One step from the full fit is first-order equal to refitting, and all draws
        together are two matrix products.
        """
        scores = np.empty(weights.shape)
        for fold, beta in enumerate(self.coefficients):
            held = self.folds == fold
            x, w, y = self.design[~held], weights[:, ~held], self.is_target[~held]
            p = expit(x @ beta)
            ridge = np.eye(x.shape[1]) / _INVERSE_PENALTY
            ridge[0, 0] = 0.0
            gradient = w @ (x * (y - p)[:, None]) - ridge @ beta
            outer = np.einsum("ni,nj->nij", x * (p * (1 - p))[:, None], x).reshape(len(x), -1)
            hessian = (w @ outer).reshape(len(w), *ridge.shape) + ridge
            moved = beta + np.linalg.solve(hessian, gradient[..., None])[..., 0]
            share = logit(w @ y / w.sum(axis=1))
            scores[:, held] = moved @ self.design[held].T - share[:, None]
        return scores


def disde(source: Side, target: Side, rng: np.random.Generator, min_ess: float = MIN_ESS) -> Disde:
    """Split E_T[loss] - E_S[loss] over the shared density.

    Args:
        source: The labelled domain, losses of predictions it was not trained on.
        target: The other domain.
        rng: Source of the folds.
        min_ess: Effective images below which the terms are refused.

    Returns:
        ``x_to_shared`` = E_s[R_S] - E_S[R_S], ``y_given_x`` = E_s[R_T] - E_s[R_S] and
        ``shared_to_target`` = E_T[R_T] - E_s[R_T].
    """
    ratios = _fit(source, target, rng)
    scores, n = ratios.fitted(), len(source.loss)
    shares = expit(scores[:n]), expit(-scores[n:])
    overlap = float(min(1.0, shares[0].mean() + shares[1].mean()))
    ess = tuple(float(w.sum() ** 2 / (w @ w)) for w in shares)
    # Equal weights that are all next to 0 have a perfect Kish size; the shared mass has not.
    size = min(*ess, overlap * n, overlap * len(target.loss))
    refused = None
    if size < min_ess:
        shared = f"{counted(round(size), 'effective image')} {are(round(size))} shared"
        refused = f"{shared} by the domains, {min_ess:.0f} needed"
    return Disde(
        terms={} if refused else _terms(source, target, ratios),
        ess_source=ess[0],
        ess_target=ess[1],
        overlap=overlap,
        domain_auc=float(roc_auc_score(ratios.is_target, scores)),
        refused=refused,
    )


def _fit(source: Side, target: Side, rng: np.random.Generator) -> _Ratios:
    phi = np.concatenate([source.phi, target.phi])
    spread = phi.std(axis=0)
    z = (phi - phi.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    design = np.column_stack([np.ones(len(z)), z, z**2])
    is_target = np.arange(len(phi)) >= len(source.phi)
    folds = np.concatenate([_deal(side.groups, rng) for side in (source, target)])
    coefficients = []
    for fold in range(_FOLDS):
        rows = folds != fold
        model = LogisticRegression(C=_INVERSE_PENALTY, max_iter=5000).fit(
            design[rows, 1:], is_target[rows]
        )
        coefficients.append(np.append(model.intercept_, model.coef_[0]))
    return _Ratios(
        design=design, is_target=is_target, folds=folds, coefficients=np.array(coefficients)
    )


def _deal(groups: NDArray[Any], rng: np.random.Generator) -> NDArray[np.intp]:
    patients, member = np.unique(groups, return_inverse=True)
    return np.asarray((rng.permutation(patients.size) % _FOLDS)[member])


def _terms(source: Side, target: Side, ratios: _Ratios) -> dict[str, Gap]:
    ones = np.ones((1, len(source.loss))), np.ones((1, len(target.loss)))
    point = _split(source, target, ratios.fitted()[None], ones)[0]
    n_draws, n_rows = len(source.draws.counts), len(ratios.design)
    parts = []
    for which in draw_blocks(n_draws, n_rows):
        weights = tuple(side.draws.weights(side.groups, which) for side in (source, target))
        parts.append(_split(source, target, ratios.redrawn(np.hstack(weights)), weights))
    drawn = np.concatenate(parts)
    return family(
        dict(zip(_TERMS, map(float, point), strict=True)),
        dict(zip(_TERMS, drawn.T, strict=True)),
    )


def _split(source: Side, target: Side, scores: Rows, weights: tuple[Rows, ...]) -> Rows:
    """The three terms for each weighting, shape (b, 3)."""
    n = len(source.loss)
    shared_s = weights[0] * expit(scores[:, :n])
    shared_t = weights[1] * expit(-scores[:, n:])
    # 0 source on itself, 1 source on shared, 2 target on shared, 3 target on itself.
    means = np.stack(
        [
            _mean(weights[0], source.loss),
            _mean(shared_s, source.loss),
            _mean(shared_t, target.loss),
            _mean(weights[1], target.loss),
        ]
    )
    return np.diff(means, axis=0).T


def _mean(weights: Rows, values: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.asarray(weights @ values / weights.sum(axis=1), dtype=np.float64)
