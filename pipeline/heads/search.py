"""Fit heads to the fit split: parameters by folds of patients, then every seed on all rows.

Folds answer two questions: which choice of parameters has the lowest log loss on held-out
patients, and which head is the best out of fold (``evaluation.bootstrap``). Each fold is
preprocessed by its own rows, and no patient is in both parts. All fits of all heads are
independent jobs, so they keep every core busy.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.domain import DomainData
from pipeline.data.patients import Fold as FoldRows
from pipeline.data.patients import patient_folds
from pipeline.errors import EngineError
from pipeline.heads import HeadSpec
from pipeline.heads.base import PreprocessedHead, row_blocks, transform_in_blocks
from pipeline.parallel import run_each
from pipeline.progress import Progress

#: With more rows, or rows times classes, one fold is held out instead of five: it has enough
#: rows for a choice, and five would take minutes.
_MANY_ROWS, _MANY_SCORES = 10_000, 100_000
#: With fewer patients, every fold chooses its parameters again by its own rows: if held-out rows
#: took part in the choice, out-of-fold scores are up to a point too high (README of
#: ``pipeline/evaluation``). This takes five times the fits.
_NESTED_BELOW = 300
#: Seconds after which one fit of a head is stopped.
_TIME_LIMIT = 600.0
_TINY = 1e-15
#: How far from 1 the probabilities of an image may add up.
_ROUNDING = 1e-3
_LONGEST_REASON = 300
Proba = NDArray[np.float64]
_Choice = Mapping[str, Any]
#: Heads whose libraries this process has imported.
_imported: set[str] = set()
#: The name of a head, and one of its fits.
_Job = tuple[str, Callable[[], Any]]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A fitted head.

    Attributes:
        models: Classifiers of the backbone's raw features: one for each seed of a stochastic
            head, else one. Empty for a fit that was read from disk.
        seeds: Seeds of the models.
        proba: Predictions of each model for the images of the study, ``(S, N, K)``; NaN for
            images that it was fitted to.
        chosen: Parameters that were chosen by folds, with their values.
        curves: Learning curves of the first model, by name; empty without epochs.
        out_of_fold: Probabilities by fits without the row's patient, of some seeds (see
            :class:`pipeline.heads.HeadSpec`), for each repeat of the folds, ``(R, n, K)``; NaN
            for rows that were never held out. None: not requested.
        seconds: Time of its fits, without those for ``out_of_fold`` only.
    """

    models: tuple[Any, ...]
    seeds: tuple[int, ...]
    proba: NDArray[np.float64]
    chosen: _Choice = field(default_factory=dict)
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    out_of_fold: NDArray[np.float64] | None = None
    seconds: float = 0.0

    @property
    def mean_proba(self) -> Proba:
        """Probabilities of the ensemble of seeds, ``(N, K)``."""
        return np.asarray(self.proba.mean(axis=0))


def head_folds(data: DomainData, seed: int) -> list[FoldRows]:
    """Row numbers (in, out) of each fold; with many rows only the first fold.

    Raises:
        StudyError: See :func:`pipeline.data.patients.patient_folds`.
    """
    label = data.get_label()
    folds = patient_folds(label, data.group, seed=seed)
    large = len(data) > _MANY_ROWS or len(data) * (label.max() + 1) > _MANY_SCORES
    return folds[:1] if large else folds


class HeadSearch:
    """Several kinds of heads on one fit split.

    Args:
        data: The fit split, with the backbone's raw features and labels.
        specs: How each head is made, by name.
        seeds: A stochastic head is fitted for each seed; the first also makes the folds.
        preprocessing: Makes an unfitted transformer.
        limit: Seconds after which one fit of a head is stopped.
        views: ``(n, k, d)``: heads are fitted to all ``k`` views of the rows; held-out rows are
            predicted from their mean, the features in ``data``. None: there is one view.

    Attributes:
        failures: By head without a fit, or without one out of fold, the reason: an exception,
            invalid probabilities, a class with too few patients, or the limit.
        seconds: Time of the fits of each head so far.
    """

    def __init__(
        self,
        data: DomainData,
        specs: Mapping[str, HeadSpec],
        *,
        seeds: Sequence[int],
        preprocessing: Callable[[], Any],
        limit: float = _TIME_LIMIT,
        views: NDArray[np.float32] | None = None,
    ) -> None:
        self.data, self.specs = data, specs
        self.seeds, self.preprocessing, self.limit = seeds, preprocessing, limit
        self._views = 1 if views is None else views.shape[1]
        self._fitted_to = data
        if views is not None:
            rows = np.repeat(np.arange(len(data)), self._views)
            repeated = replace(data, features=None).take(rows)
            self._fitted_to = repeated.with_(features=views.reshape(len(rows), -1))
        self.failures: dict[str, str] = {}
        self.seconds = dict.fromkeys(specs, 0.0)
        self._fixed: dict[str, _Choice] = {}
        self._held_out: dict[str, Proba] = {}
        self._progress: Progress

    def fit(
        self,
        X: NDArray[np.float32],
        predicted: NDArray[np.intp],
        validation: DomainData | None = None,
    ) -> dict[str, Fit]:
        """Choose the parameters of each head by folds, then fit it to all rows.

        Args:
            X: Features of all images of the study, ``(N, d)``.
            predicted: Row numbers of the images to predict.
            validation: Rows for learning curves; no fit uses them.

        Returns:
            The fits by head, without those in ``failures``.
        """
        import_heads({n: spec for n, spec in self.specs.items() if not spec.scikit_learn})
        y = self.data.get_label()
        chosen = {name: spec.choices[0] for name, spec in self.specs.items()}
        searched = {n: spec.choices for n, spec in self.specs.items() if len(spec.choices) > 1}
        # Heads without a choice are fitted beside the folds of the others, so that no core
        # waits; of many rows, the folds and all rows at once would take too much memory.
        first = (
            {} if len(y) > _MANY_ROWS else {n: c for n, c in chosen.items() if n not in searched}
        )
        prepared = cache(partial(self._prepare, validation))
        fits_of = partial(self._fits_to_all_rows, prepared, X, predicted)
        with Progress("heads", unit="fits") as self._progress:
            jobs, shared = fits_of(first)
            test, held_out, fitted = self._hold_out(searched, others=jobs, shared=shared)
            for name, by_choice in held_out.items():
                try:
                    chosen[name], proba = _choose(self.specs[name], by_choice, y)
                except ValueError as cause:
                    self.failures[name] = _reason(cause)
                else:
                    self._held_out[name] = cross_fitted_choice(proba, y, test)
            left = {n: c for n, c in chosen.items() if n not in first and n not in self.failures}
            jobs, shared = fits_of(left)
            fitted |= self._run(jobs, shared=shared)
        return {
            name: self._fit_of(name, fitted[name], chosen[name])
            for name in chosen
            if name in fitted
        }

    def _fit_of(self, name: str, fitted: Sequence[tuple[Any, Proba]], chosen: _Choice) -> Fit:
        """The fit of a head, from its models and predictions."""
        models, proba = zip(*fitted, strict=True)
        head = models[0].head
        # With many patients, the choice on all rows is also used out of fold.
        self._fixed[name] = {**chosen, **getattr(head, "fixed_params_", {})}
        parameters = {**chosen, **getattr(head, "best_params_", {})}
        return Fit(
            models=models,
            seeds=tuple(self.seeds[: len(models)]),
            proba=np.stack(proba),
            chosen={k: v for k, v in parameters.items() if k != "calibration"},
            curves=getattr(head, "curves_", {}),
            seconds=self.seconds[name],
        )

    def out_of_fold(self, fits: Mapping[str, Fit], repeats: int) -> dict[str, Fit]:
        """Add ``out_of_fold`` to the fits of heads that could be fitted in every fold.

        ``repeats`` is how often folds are made.
        """
        by_head: dict[str, list[Proba]] = {name: [] for name in fits}
        nested = self.data.patients < _NESTED_BELOW
        fit = _fit_nested if nested else _fit_choices
        with Progress("heads, out of fold", unit="fits") as self._progress:
            for repeat in range(repeats):
                # The folds that parameters were chosen by are those of the first repeat.
                stored = {} if repeat or nested else self._held_out
                again = {name: [self._fixed[name]] for name in fits if name not in stored}
                _, held_out, _ = self._hold_out(again, repeat, "out of fold", fit)
                proba_of = {**stored, **{name: proba[0] for name, proba in held_out.items()}}
                for name in fits.keys() & proba_of.keys():
                    by_head[name].append(proba_of[name])
        whole = {name for name in fits if len(by_head[name]) == repeats > 0}
        return {
            name: replace(fit, out_of_fold=np.stack(by_head[name]) if name in whole else None)
            for name, fit in fits.items()
        }

    def _hold_out(
        self,
        choices: Mapping[str, Sequence[_Choice]],
        repeat: int = 0,
        what: str = "",
        fit: Callable[..., Proba] | None = None,
        *,
        others: Sequence[_Job] = (),
        shared: Sequence[Any] = (),
    ) -> tuple[list[NDArray[np.intp]], dict[str, Proba], dict[str, list[Any]]]:
        """Fit each head with every choice of parameters to each fold of one repeat.

        The rows held out of each fold; by head their probabilities ``(choices, n, K)``, of
        heads that were fitted in every fold; and what ``others``, jobs of other heads, return.
        Those of a stochastic head are by an ensemble of seeds, as the head of all rows is: one
        seed alone errs more, which looks like a gain where the ensemble is applied.
        """
        fit = fit or _fit_choices
        try:
            folds = self._folds(self.seeds[0] + repeat) if choices else []
        except (ValueError, MemoryError) as cause:
            self.failures.update(dict.fromkeys([what] if what else choices, _reason(cause)))
            folds = []
        jobs = [
            (name, partial(fit, self.specs[name], of_head, fold, seed + repeat))
            for name, of_head in choices.items()
            for seed in self._seeds_of(name, out_of_fold=True)
            for fold in folds
        ]
        results = self._run([*others, *jobs], what, shared=shared)
        held_out: dict[str, Proba] = {}
        for name in [name for name in choices if name in results]:
            held_out[name] = np.full((len(choices[name]), len(self.data), folds[0].classes), np.nan)
            of_head, count = results.pop(name), len(folds)
            for number, fold in enumerate(folds):
                held_out[name][:, fold.test] = np.mean(of_head[number::count], axis=0)
        return [fold.test for fold in folds], held_out, results

    def _seeds_of(self, name: str, *, out_of_fold: bool = False) -> Sequence[int]:
        spec = self.specs[name]
        most = spec.seeds_out_of_fold if out_of_fold else len(self.seeds)
        return self.seeds[: most if spec.stochastic else 1]

    def _folds(self, seed: int) -> list["_Fold"]:
        """The folds of one repeat, preprocessed, with all views of the training rows."""
        data, folds = self._fitted_to, []
        for rows, test in head_folds(self.data, seed):
            train = (rows[:, None] * self._views + np.arange(self._views)).ravel()
            transformer = self.preprocessing().fit(data.get_features()[train])
            folds.append(
                _Fold(
                    X=transform_in_blocks(transformer, data.get_features(), train),
                    y=data.get_label()[train],
                    group=data.group[train],
                    test=test,
                    X_test=transform_in_blocks(transformer, self.data.get_features(), test),
                    classes=int(data.get_label().max()) + 1,
                )
            )
        return folds

    def _prepare(
        self, validation: DomainData | None
    ) -> tuple[Any, NDArray[np.float32], tuple[Any, Any] | None]:
        """The preprocessing fitted to all rows, these rows, and validation rows with labels."""
        data, seen = self._fitted_to, None
        transformer = self.preprocessing().fit(data.get_features())
        rows = transform_in_blocks(transformer, data.get_features(), np.arange(len(data)))
        if validation is not None and any(spec.curves for spec in self.specs.values()):
            seen = (transformer.transform(validation.get_features()), validation.get_label())
        return transformer, rows, seen

    def _fits_to_all_rows(
        self,
        prepared: Callable[[], tuple[Any, NDArray[np.float32], tuple[Any, Any] | None]],
        X: NDArray[np.float32],
        predicted: NDArray[np.intp],
        chosen: Mapping[str, _Choice],
    ) -> tuple[list[_Job], list[Any]]:
        """Jobs for each seed of each head, which return model and predictions; and the rows.

        A head that stores its rows stores these. None if the rows cannot be prepared.
        """
        if not chosen:
            return [], []
        try:
            transformer, rows, seen = prepared()
        except (ValueError, MemoryError) as cause:
            self.failures.update(dict.fromkeys(chosen, _reason(cause)))
            return [], []
        y, group = self._fitted_to.get_label(), self._fitted_to.group

        def fit(name: str, seed: int) -> tuple[Any, Proba]:
            spec = self.specs[name]
            more: dict[str, Any] = {"groups": group} if spec.groups else {}
            if spec.curves and seed == self.seeds[0]:
                more["validation"] = seen
            head = spec.make(seed).set_params(**chosen[name]).fit(rows, y, **more)
            model = PreprocessedHead(transformer, head)
            return model, _predict_in_blocks(model, X, predicted, classes=int(y.max()) + 1)

        jobs: list[_Job] = [
            (name, partial(fit, name, seed)) for name in chosen for seed in self._seeds_of(name)
        ]
        return jobs, [rows]

    def _run(
        self,
        jobs: Sequence[_Job],
        what: str = "",
        *,
        shared: Sequence[Any] = (),
    ) -> dict[str, list[Any]]:
        """The results of the jobs of each head, for heads without a failed job.

        ``what`` begins the reason of a failure; a job stands with the name of its head.
        """
        results: dict[str, list[Any]] = {name: [] for name, _ in jobs}
        self._progress.expect(len(jobs))
        new = {
            name: self.specs[name]
            for name in results
            if self.specs[name].scikit_learn and name not in _imported
        }
        if new:  # these wait for scikit-learn's import, beside the others
            first = [job for job in jobs if job[0] not in new]
            self._run_part(first, what, shared, results, meanwhile=partial(import_heads, new))
            jobs = [job for job in jobs if job[0] in new]
        self._run_part(jobs, what, shared, results)
        return {name: of_head for name, of_head in results.items() if name not in self.failures}

    def _run_part(
        self,
        jobs: Sequence[_Job],
        what: str,
        shared: Sequence[Any],
        results: Mapping[str, list[Any]],
        *,
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        def done(number: int, outcome: Any) -> None:
            self._progress.advance()
            if isinstance(outcome, BaseException):
                reason = _reason(outcome)
                self.failures[jobs[number][0]] = f"{what}: {reason}" if what else reason

        outcomes = run_each(
            [partial(_timed, job) for _, job in jobs],
            limit=self.limit,
            done=done,
            is_wanted=lambda number: jobs[number][0] not in self.failures,
            meanwhile=meanwhile,
            shared=shared,
        )
        for (name, _), outcome in zip(jobs, outcomes, strict=True):
            if isinstance(outcome, tuple):
                results[name].append(outcome[0])
                self.seconds[name] += outcome[1]


def import_heads(specs: Mapping[str, HeadSpec]) -> None:
    """Make each head once, so that every fork has its imports."""
    for name, spec in specs.items():
        with suppress(Exception):  # whoever fits it says so
            spec.make(0)
        _imported.add(name)


def _timed(job: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a job, and its seconds."""
    start = time.perf_counter()
    return job(), time.perf_counter() - start


def _reason(cause: BaseException) -> str:
    """The text of an exception; with its type if the exception is unexpected."""
    expected = isinstance(cause, ValueError | TimeoutError | EngineError | np.linalg.LinAlgError)
    text = " ".join(str(cause).split())[:_LONGEST_REASON]
    return text if expected and text else f"{type(cause).__name__}: {text}".rstrip(": ")


@dataclass(frozen=True, kw_only=True)
class _Fold:
    """A fold after preprocessing: rows to fit to, with all views, and held-out rows."""

    X: NDArray[np.float32]
    y: NDArray[np.integer]
    group: NDArray[Any]
    test: NDArray[np.intp]
    X_test: NDArray[np.float32]
    classes: int


def _fit_choices(spec: HeadSpec, choices: Sequence[_Choice], fold: _Fold, seed: int) -> Proba:
    """Probabilities ``(choices, out, K)`` of held-out rows, or scores if there are several choices.

    A choice that cannot be fitted to the rows of a fold (more neighbours than rows), or gives
    no probabilities (naive Bayes without smoothing), has NaN.

    Raises:
        ValueError: No choice can be fitted.
    """
    shape = len(fold.test), fold.classes
    heads = [spec.make(seed).set_params(**choice) for choice in choices]
    if spec.fit_path and len(choices) > 1:
        along = np.asarray(spec.fit_path(heads, fold.X, fold.y, fold.X_test))
        for proba in along:
            # Where none is finite, the rows are too few for this choice.
            if np.isfinite(proba).any() and not spec.calibrated:
                _check_probabilities(proba, shape)
        return along
    held_out, refusals = np.full((len(heads), *shape), np.nan), []
    for number, head in enumerate(heads):
        try:
            head.fit(fold.X, fold.y, **({"groups": fold.group} if spec.groups else {}))
            proba = np.asarray(head.predict_proba(fold.X_test))
            _check_probabilities(proba, shape)
            held_out[number] = proba
        except ValueError as refusal:
            refusals.append(refusal)
    if len(refusals) == len(heads):
        raise refusals[-1]
    return held_out


def _fit_nested(spec: HeadSpec, fixed: Sequence[_Choice], fold: _Fold, seed: int) -> Proba:
    """Probabilities ``(1, out, K)`` of held-out rows, which take no part in any choice.

    If a class has too few patients to divide the fold again, ``fixed`` is used, which was chosen
    on all rows.
    """
    try:
        best = _best_inside(spec, fold, seed) if len(spec.choices) > 1 else spec.choices[0]
        return _fit_choices(spec, [best], fold, seed)
    except ValueError:
        return _fit_choices(spec, fixed, fold, seed)


def _best_inside(spec: HeadSpec, fold: _Fold, seed: int) -> _Choice:
    """The choice with the lowest log loss in folds of the fold's own rows."""
    by_choice = np.full((len(spec.choices), len(fold.y), fold.classes), np.nan)
    for train, test in patient_folds(fold.y, fold.group, seed=seed):
        part = _Fold(
            X=fold.X[train],
            y=fold.y[train],
            group=fold.group[train],
            test=test,
            X_test=fold.X[test],
            classes=fold.classes,
        )
        by_choice[:, test] = _fit_choices(spec, spec.choices, part, seed)
    return _choose(spec, by_choice, fold.y)[0]


def _choose(spec: HeadSpec, by_choice: Proba, y: NDArray[np.integer]) -> tuple[_Choice, Proba]:
    """The choice with the lowest log loss on held-out rows, and probabilities by every choice.

    If there are scores, each choice has its own calibration.

    Raises:
        ValueError: See :func:`pipeline.heads.closed_form.fit_calibration`.
    """
    choices = spec.choices
    if spec.calibrated:
        from pipeline.heads.closed_form import fit_calibration  # scipy takes time to import

        calibrations = [fit_calibration(scores, y) for scores in by_choice]
        choices = [
            {**choice, "calibration": c} for choice, c in zip(choices, calibrations, strict=True)
        ]
        by_choice = np.stack([c.proba(s) for c, s in zip(calibrations, by_choice, strict=True)])
    return choices[int(np.argmin(_log_losses(by_choice, y)))], by_choice


def cross_fitted_choice(
    by_choice: Proba, y: NDArray[np.integer], folds: Sequence[NDArray[np.intp]]
) -> Proba:
    """Held-out probabilities ``(n, K)``, from ``(choices, n, K)`` and labels ``(n,)``.

    No row takes part in the choice for its own fold.
    """
    held_out = np.full(by_choice.shape[1:], np.nan)
    for rows in folds:
        others = by_choice.copy()
        others[:, rows] = np.nan
        if not np.isfinite(others).any():  # of very many rows one fold alone is held out
            others = by_choice
        held_out[rows] = by_choice[int(np.argmin(_log_losses(others, y)))][rows]
    return held_out


def _log_losses(by_choice: Proba, y: NDArray[np.integer]) -> NDArray[np.float64]:
    """Mean log loss of each choice on held-out rows; infinite if a fold could not fit it."""
    held_out = np.flatnonzero(np.isfinite(by_choice).all(axis=2).any(axis=0))
    of_label = by_choice[:, held_out, y[held_out]]
    loss = -np.log(np.maximum(of_label, _TINY)).mean(axis=1)
    return np.where(np.isfinite(loss), loss, np.inf)


def _predict_in_blocks(
    model: Any, X: NDArray[np.floating], rows: NDArray[np.intp], *, classes: int
) -> NDArray[np.float64]:
    """A classifier's probabilities for some rows of ``(N, d)``, NaN for the others: ``(N, K)``."""
    proba = np.full((len(X), classes), np.nan)
    for block in row_blocks((len(rows), X.shape[1])):
        of_block = np.asarray(model.predict_proba(X[rows[block]]))
        _check_probabilities(of_block, (len(rows[block]), classes))
        proba[rows[block]] = of_block
    return proba


def _check_probabilities(proba: NDArray[np.floating], shape: tuple[int, int]) -> None:
    """Refuse what is no probability of each class, by a ValueError that says what was got."""
    if proba.shape != shape:
        raise ValueError(
            f"it gives probabilities of shape {proba.shape}; images and classes are {shape}"
        )
    if not (np.isfinite(proba).all() and (proba >= 0).all()):
        raise ValueError("its probabilities are not all numbers of 0 or more")
    if len(proba) and np.abs(proba.sum(axis=1) - 1).max() > _ROUNDING:
        raise ValueError("its probabilities of an image do not add up to 1")
