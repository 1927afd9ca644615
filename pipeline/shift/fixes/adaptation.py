"""What every fix starts from (the labelled source) and what it returns (a predictor).

A fix is ``adapt(source, target_features, rng) -> Predictor``. It has no argument through
which a label of the target could reach it.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from pipeline.errors import StudyError
from pipeline.heads import HEADS
from pipeline.heads.logistic import LogisticHead, Path, solve_path
from pipeline.heads.training import Problem, train_head
from pipeline.heads.treated import untreated
from pipeline.shift.fixes.bcts import Calibration, fit_calibration
from pipeline.shift.fixes.class_mix import posterior
from pipeline.shift.fixes.patients import teaching_folds
from pipeline.two_samples.gaussians import shrunk_covariance

Rows = NDArray[np.floating]
"""Shape (n, d): rows of features."""
Parts = Sequence[NDArray[np.intp]]
"""Sets of rows of a target, each to be adapted to by itself."""


@dataclass(frozen=True, kw_only=True)
class FixSettings:
    """Default hyper-parameters of all fixes; part of the plan that is hashed."""

    inverse_penalty: float = 0.01
    """C of the logistic head on standardised features."""
    pseudo_count: float = 16.0
    """F1: how many source rows the target's own statistics are mixed with."""
    components: int = 128
    """F2, F3: principal components in which covariances are aligned."""
    ratio_exponent: float = 0.5
    """F6: power of the density ratio; 0 is no weighting, 1 the full ratio."""
    ratio_clip: float = 0.95
    """F6: quantile at which the weights are clipped."""
    calibration_folds: int = 5
    """F1b, F7: folds, by patient, of the out-of-fold scores that calibrate the head."""
    prototypes: int = 20
    """F8: most confident rows kept per class."""
    bags: int = 5
    """F11: heads of the ensemble over bootstraps of the source's patients."""
    ensemble_seeds: int = 5
    """F11: perceptrons of the ensemble over seeds, 0 and up; five have most of the gain
    (Lakshminarayanan et al. 2017)."""
    ensemble_heads: tuple[str, ...] = ("ridge", "prototype", "boosting", "mlp")
    """F11: entries of ``HEADS`` that the ensemble over kinds puts beside the logistic head."""


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """An adapted model: raw target features in, class probabilities out."""

    transform: Callable[[Rows], Rows]
    """Raw features (n, d) -> features in the head's space (n, e)."""
    score: Callable[[Rows], NDArray[np.float64]]
    """Features in the head's space -> probabilities (n, K)."""
    class_weights: NDArray[np.float64] | None = None
    """Shape (K,): target prior over source prior; None for no correction."""
    notes: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """Numbers to print beside the row, such as the effective sample size."""

    def __call__(self, features: Rows) -> NDArray[np.float64]:
        """Return class probabilities, shape (n, K), for raw features of shape (n, d)."""
        probabilities = self.score(self.transform(features))
        if self.class_weights is None:
            return probabilities
        return posterior(probabilities, self.class_weights)


@dataclass(frozen=True, kw_only=True)
class Axes:
    """The standardised source in its own principal axes."""

    directions: NDArray[np.float64]
    """Shape (d, c), orthonormal columns."""
    rows: NDArray[np.float64]
    """Shape (n, c)."""
    covariance: NDArray[np.float64]
    """Shape (c, c), of the rows, shrunk."""


#: What a source has computed and keeps under other settings.
_KEPT = ("mean", "scale", "prior", "standard", "head", "_fitted", "_trained", "_axes")


@dataclass(frozen=True, kw_only=True)
class Source:
    """The labelled domain. What several fixes need of it is computed once, when asked for."""

    features: Rows
    """Shape (n, d), raw."""
    labels: NDArray[np.integer]
    """Shape (n,), 0 to K - 1, every class present."""
    groups: NDArray[Any]
    """Shape (n,), patient ids."""
    settings: FixSettings = field(default_factory=FixSettings)
    """Hyper-parameters."""

    def __post_init__(self) -> None:
        """Refuse labels that do not number the classes.

        Raises:
            StudyError: Lengths differ, fewer than two classes, or a class has no row.
        """
        if not len(self.features) == len(self.labels) == len(self.groups):
            raise StudyError("features, labels and groups of the source differ in length")
        counts = np.bincount(self.labels)
        if counts.size < 2 or not counts.all():  # noqa: PLR2004 - two classes make a task
            raise StudyError(
                f"source labels must use every number from 0 to K - 1, counts are {counts.tolist()}"
            )

    @cached_property
    def mean(self) -> NDArray[np.float64]:
        """Shape (d,)."""
        return np.asarray(self.features.mean(axis=0, dtype=np.float64))

    @cached_property
    def scale(self) -> NDArray[np.float64]:
        """Shape (d,): standard deviations, 1 where a feature does not vary."""
        deviation = self.features.std(axis=0, dtype=np.float64)
        return np.where(deviation > 0, deviation, 1.0)

    @cached_property
    def prior(self) -> NDArray[np.float64]:
        """Shape (K,): share of each class."""
        return np.asarray(np.bincount(self.labels) / len(self.labels))

    def with_settings(self, settings: FixSettings) -> "Source":
        """The same rows under other settings; what does not depend on them is kept.

        The penalty must stay: the head is kept too.
        """
        if settings.inverse_penalty != self.settings.inverse_penalty:
            raise StudyError("another penalty is another head: make another source")
        other = replace(self, settings=settings)
        for name in _KEPT:
            if name in vars(self):
                vars(other)[name] = vars(self)[name]
        return other

    def standardise(self, features: Rows) -> NDArray[np.float64]:
        """Scale raw features by the source's mean and standard deviation, shape (n, d)."""
        return np.asarray((features - self.mean) / self.scale, dtype=np.float64)

    @cached_property
    def standard(self) -> NDArray[np.float64]:
        """Shape (n, d): the source's own rows, standardised."""
        return self.standardise(self.features)

    @property
    def axes(self) -> "Axes":
        """Principal axes of the standardised source, for as many components as are set."""
        count = min(self.settings.components, *self.features.shape)
        if count not in self._axes:
            solver = PCA(count, svd_solver="randomized", random_state=0)
            directions = np.asarray(solver.fit(self.standard).components_.T, dtype=np.float64)
            rows = self.standard @ directions
            self._axes[count] = Axes(
                directions=directions, rows=rows, covariance=shrunk_covariance(rows)
            )
        return self._axes[count]

    @cached_property
    def _axes(self) -> dict[int, "Axes"]:
        """By their number: several fixes and values of settings ask for the same."""
        return {}

    @cached_property
    def head(self) -> LogisticHead:
        """The head that knows only the source, on standardised features."""
        return self.fit(self.standard)

    def fit(
        self,
        rows: Rows,
        *,
        labels: NDArray[np.integer] | None = None,
        weights: NDArray[np.floating] | None = None,
    ) -> LogisticHead:
        """Fit a logistic head.

        Args:
            rows: Shape (m, e), scaled to about unit variance.
            labels: Shape (m,); the source's own when left out.
            weights: Shape (m,), weight of each row; 1 when left out.
        """
        head = LogisticHead(C=self.settings.inverse_penalty)
        return head.fit(rows, self.labels if labels is None else labels, sample_weight=weights)

    def weighted_heads(self, weights: NDArray[np.number]) -> Path:
        """Fit several heads to the source's own rows at once; the same weights only once.

        Args:
            weights: Shape (V, n), >= 0: how much each row counts for each head.

        Returns:
            The heads, by :meth:`~pipeline.heads.logistic.Path.proba` on standardised rows.
        """
        key = hashlib.sha256(np.ascontiguousarray(weights).tobytes()).hexdigest()
        if key not in self._fitted:
            self._fitted[key] = solve_path(
                self.standard.astype(np.float32),
                self.labels,
                C=np.full(len(weights), self.settings.inverse_penalty),
                weights=weights.astype(np.float64),
            )
        return self._fitted[key]

    @cached_property
    def _fitted(self) -> dict[str, Path]:
        """What :meth:`weighted_heads` has fitted: a fix that looks at no target asks again."""
        return {}

    def trained(self, name: str, count: int = 1) -> list[Any]:
        """Train heads of another kind on the source's own rows; each of them only once.

        Args:
            name: Entry of ``HEADS``, taken with its defaults.
            count: Heads, of seeds 0 and up; a kind without seeds has one.

        Raises:
            UnknownNameError: No such kind.
            StudyError: It cannot be fitted to these rows.
        """
        if len(self._trained.get(name, ())) < count:
            problem = Problem(
                X=untreated(self.standard.astype(np.float32)),
                y=self.labels.astype(np.int64),
                group=self.groups,
                seeds=tuple(range(count)),
            )
            kinds = {kind: replace(spec, grid={}) for kind, spec in HEADS.items()}
            try:
                self._trained[name] = train_head(name, problem, kinds)
            except ValueError as error:
                raise StudyError(f"the head {name!r} cannot be fitted here: {error}") from error
        return self._trained[name][:count]

    @cached_property
    def _trained(self) -> dict[str, list[Any]]:
        """What :meth:`trained` has trained: every target, half and seed asks again."""
        return {}

    @cached_property
    def out_of_fold(self) -> NDArray[np.float64]:
        """Shape (n, K): probabilities of heads that did not see the row's patient.

        Raises:
            StudyError: A class has too few patients for folds.
        """
        most = self.settings.calibration_folds
        return self.held_out(teaching_folds(self.labels, self.groups, most))

    def held_out(
        self, folds: Iterable[tuple[NDArray[np.intp], NDArray[np.intp]]]
    ) -> NDArray[np.float64]:
        """Shape (n, K): probabilities of each row by a head that was fitted without its fold.

        Args:
            folds: Row numbers (in, out); each row is out once.
        """
        probabilities = np.zeros((len(self.labels), self.prior.size))
        for fit, held in folds:
            head = self.fit(self.standard[fit], labels=self.labels[fit])
            probabilities[np.ix_(held, head.classes_)] = head.predict_proba(self.standard[held])
        return probabilities

    @cached_property
    def calibration(self) -> Calibration:
        """What makes the head's probabilities honest on the source."""
        return fit_calibration(self.out_of_fold, self.labels)

    def calibrated(self, rows: Rows) -> NDArray[np.float64]:
        """Return the head's calibrated probabilities, shape (m, K), for standardised rows."""
        return self.calibration(self.head.predict_proba(rows))


Fix = Callable[[Source, Rows, np.random.Generator], Predictor]
"""Source, raw target features (m, d), randomness -> predictor. No target labels."""
