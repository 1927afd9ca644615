"""Fit heads to the fit split: parameters by folds of patients, then every seed on all rows.

Folds serve two questions. Which parameters of a grid have the lowest log loss on patients
that were held out; and, out of fold, which head is the best (see ``evaluation.selection``).
Each fold is preprocessed by its own rows, and no patient is on both of its sides. All fits
of all heads are independent jobs, so they keep every core busy.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import ParameterGrid
from sklearn.pipeline import make_pipeline

from pipeline.data.domain import DomainData
from pipeline.data.patients import Fold as FoldRows
from pipeline.data.patients import patient_folds
from pipeline.heads import HeadSpec
from pipeline.heads.base import predict_in_blocks
from pipeline.heads.parallel import run_parallel

#: Of more rows one fold is held out instead of five: it has rows enough to choose by.
MANY_ROWS = 10_000
_TINY = 1e-15
Proba = NDArray[np.float64]
Transformer = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A kind of head, fitted.

    Attributes:
        models: From features as the backbone gave them to ``predict_proba``: one for each
            seed of a stochastic head, else one. Empty for a fit that was read back.
        seeds: Of the models.
        proba: What each model predicts for the images of the study, ``(S, N, K)``; NaN for
            those that it was fitted to.
        chosen: Parameters that were chosen by folds, with their values.
        path: Mean log loss on held-out patients of each choice; empty without a choice.
        curves: Of the first model: a value for each epoch by name; empty without epochs.
        out_of_fold: Probabilities by fits that did not see the row's patient, for each
            division in folds, ``(R, n, K)``; NaN for rows that were never held out. None: not
            asked for.
        seconds: Time of all its fits.
    """

    models: tuple[Any, ...]
    seeds: tuple[int, ...]
    proba: NDArray[np.float64]
    chosen: Mapping[str, Any] = field(default_factory=dict)
    path: Sequence[Mapping[str, Any]] = ()
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    out_of_fold: NDArray[np.float64] | None = None
    seconds: float = 0.0


def fit_heads(
    data: DomainData,
    specs: Mapping[str, HeadSpec],
    X: NDArray[np.float32],
    predicted: NDArray[np.intp],
    *,
    seeds: Sequence[int],
    preprocessing: Transformer,
    repeats: int = 0,
    validation: DomainData | None = None,
) -> tuple[dict[str, Fit], dict[str, str]]:
    """Fit several kinds of heads.

    Args:
        data: The fit split, with features as the backbone gave them and labels.
        specs: How each head is made, by name.
        X: Features of all images of the study, ``(N, d)``.
        predicted: Row numbers of those to be predicted.
        seeds: A stochastic head is fitted for each; the first also deals the folds.
        preprocessing: Makes an unfitted transformer.
        repeats: Divisions in folds that every head is fitted to; with 0, only heads that
            have parameters to choose are, and none has ``out_of_fold``.
        validation: Rows that training curves are drawn of; they reach no fit.

    Returns:
        The fits, and the reason for each head that could not be fitted: a class of too few
        patients, or memory that cannot be had.
    """
    fitting = _Fitting(data, specs, seeds=seeds, preprocessing=preprocessing)
    grids = {name: list(ParameterGrid(dict(spec.grid))) for name, spec in specs.items()}
    searched = {name: grid for name, grid in grids.items() if len(grid) > 1}
    by_choice = fitting.divide(searched, seeds[0])
    losses = {name: _log_losses(proba, data.labelled()) for name, proba in by_choice.items()}
    best = {name: int(np.argmin(loss)) for name, loss in losses.items()}
    chosen = {name: grids[name][best.get(name, 0)] for name in fitting.alive}
    fits = fitting.fit_all_rows(chosen, X, predicted, validation)
    held_out: dict[str, list[Proba]] = {name: [] for name in fits}
    # What was chosen once is kept: no fold chooses again.
    settled = {name: [{**chosen[name], **_settled(fit)}] for name, fit in fits.items()}
    for repeat in range(repeats):
        if not repeat:
            held_out |= {name: [by_choice[name][best[name]]] for name in fits if name in best}
        waiting = {
            name: params for name, params in settled.items() if len(held_out[name]) <= repeat
        }
        again = fitting.divide(waiting, seeds[0] + repeat, what="out of fold")
        for name, proba in again.items():
            held_out[name].append(proba[0])
    complete = {
        name: replace(
            fit,
            chosen={**chosen[name], **getattr(fit.models[0][-1], "best_params_", {})},
            path=_path(fit.models[0], searched.get(name, ()), losses.get(name)),
            out_of_fold=np.stack(held_out[name])
            if repeats and len(held_out[name]) == repeats
            else None,
            seconds=fitting.seconds[name],
        )
        for name, fit in fits.items()
    }
    return complete, fitting.failures


def deal_folds(data: DomainData, seed: int) -> list[FoldRows]:
    """Row numbers (in, out) of each fold; of many rows only the first of the folds.

    Raises:
        StudyError: See :func:`pipeline.data.patients.patient_folds`.
    """
    folds = patient_folds(data.labelled(), data.group, seed=seed)
    return folds[:1] if len(data) > MANY_ROWS else folds


@dataclass(frozen=True, kw_only=True)
class _Fold:
    """A fold after preprocessing: rows to fit to, and rows held out."""

    inside: NDArray[np.intp]
    outside: NDArray[np.intp]
    X_inside: NDArray[np.float32]
    X_outside: NDArray[np.float32]


class _Fitting:
    """Fits of several heads as independent jobs, with their times and failures."""

    def __init__(
        self,
        data: DomainData,
        specs: Mapping[str, HeadSpec],
        *,
        seeds: Sequence[int],
        preprocessing: Transformer,
    ) -> None:
        self.data, self.specs = data, specs
        self.seeds, self.preprocessing = seeds, preprocessing
        self.failures: dict[str, str] = {}
        self.seconds = dict.fromkeys(specs, 0.0)

    @property
    def alive(self) -> list[str]:
        """Heads without a failure."""
        return [name for name in self.specs if name not in self.failures]

    def divide(
        self, choices: Mapping[str, Sequence[Mapping[str, Any]]], seed: int, *, what: str = ""
    ) -> dict[str, Proba]:
        """Fit choices of parameters to each fold of one division.

        Args:
            choices: Parameters by head.
            seed: Of the division, and of stochastic heads.
            what: Begins the reasons of failures; a division that fails is one of its own.

        Returns:
            Probabilities ``(choices, n, K)`` of held-out rows, for each head that every fold
            bears.
        """
        if not choices:
            return {}
        X, y = self.data.embedded(), self.data.labelled()
        try:
            folds = run_parallel(
                [
                    partial(_preprocess, X, *rows, self.preprocessing)
                    for rows in deal_folds(self.data, seed)
                ]
            )
        except (ValueError, MemoryError) as cause:
            names = [what] if what else choices
            self.failures.update(dict.fromkeys(names, _reason(cause)))
            return {}
        jobs = [(name, fold) for name in choices for fold in folds]
        found = self._run(
            [
                (
                    name,
                    partial(_fit_choices, self.specs[name], choices[name], fold, self.data, seed),
                )
                for name, fold in jobs
            ],
            what,
        )
        shape = len(y), int(y.max()) + 1
        proba = {name: np.full((len(params), *shape), np.nan) for name, params in choices.items()}
        for (name, fold), of_fold in zip(jobs, found, strict=True):
            if of_fold is not None:
                proba[name][:, fold.outside] = of_fold
        return {name: values for name, values in proba.items() if name in self.alive}

    def fit_all_rows(
        self,
        chosen: Mapping[str, Mapping[str, Any]],
        X: NDArray[np.float32],
        predicted: NDArray[np.intp],
        validation: DomainData | None,
    ) -> dict[str, Fit]:
        """Every seed of every head on all rows, at the parameters that were chosen."""
        data = self.data
        try:
            transformer = self.preprocessing().fit(data.embedded())
            rows, y = transformer.transform(data.embedded()), data.labelled()
        except (ValueError, MemoryError) as cause:
            self.failures.update(dict.fromkeys(self.alive, _reason(cause)))
            return {}
        seen = None
        if validation is not None and any(self.specs[name].curves for name in self.alive):
            seen = (transformer.transform(validation.embedded()), validation.labelled())

        def fit(name: str, seed: int) -> tuple[Any, Proba]:
            spec = self.specs[name]
            more: dict[str, Any] = {"groups": data.group} if spec.groups else {}
            if spec.curves and seed == self.seeds[0]:
                more["validation"] = seen
            head = spec.make(seed).set_params(**chosen[name]).fit(rows, y, **more)
            model = make_pipeline(transformer, head)
            return model, predict_in_blocks(model, X, predicted)

        jobs = [
            (name, seed)
            for name in self.alive
            for seed in (self.seeds if self.specs[name].stochastic else self.seeds[:1])
        ]
        results = self._run([(name, partial(fit, name, seed)) for name, seed in jobs])
        fits = {}
        for name in self.alive:
            fitted = [(seed, *results[i]) for i, (of, seed) in enumerate(jobs) if of == name]
            seeds, models, proba = zip(*fitted, strict=True)
            curves = getattr(models[0][-1], "curves_", {})
            fits[name] = Fit(models=models, seeds=seeds, proba=np.stack(proba), curves=curves)
        return fits

    def _run(self, jobs: Sequence[tuple[str, Callable[[], Any]]], what: str = "") -> list[Any]:
        """What the jobs of heads return, in their order; None for one that failed."""
        results: list[Any] = [None] * len(jobs)

        def run(number: int) -> None:
            name, job = jobs[number]
            start = time.perf_counter()
            try:
                results[number] = job()
            except (ValueError, MemoryError, np.linalg.LinAlgError) as cause:
                self.failures[name] = f"{what}: {_reason(cause)}" if what else _reason(cause)
            self.seconds[name] += time.perf_counter() - start

        numbers = range(len(jobs))
        alone = [i for i in numbers if not self.specs[jobs[i][0]].parallel]
        run_parallel([partial(run, i) for i in numbers if i not in alone])
        for i in alone:
            run(i)
        return results


def _reason(cause: BaseException) -> str:
    return str(cause) or type(cause).__name__


def _preprocess(
    X: NDArray[np.float32],
    inside: NDArray[np.intp],
    outside: NDArray[np.intp],
    preprocessing: Transformer,
) -> _Fold:
    transformer = preprocessing()
    return _Fold(
        inside=inside,
        outside=outside,
        X_inside=transformer.fit_transform(X[inside]),
        X_outside=transformer.transform(X[outside]),
    )


def _fit_choices(
    spec: HeadSpec,
    choices: Sequence[Mapping[str, Any]],
    fold: _Fold,
    data: DomainData,
    seed: int,
) -> Proba:
    """Probabilities ``(choices, out, K)`` of the rows held out.

    A choice that the rows of a fold cannot bear (more neighbours than rows) has NaN.

    Raises:
        ValueError: They can bear none.
    """
    y, group = data.labelled()[fold.inside], data.group[fold.inside]
    heads = [spec.make(seed).set_params(**choice) for choice in choices]
    if spec.path:
        return np.asarray(spec.path(heads, fold.X_inside, y, fold.X_outside))
    proba: list[Proba | None] = []
    for head in heads:
        try:
            fitted = head.fit(fold.X_inside, y, **({"groups": group} if spec.groups else {}))
            proba.append(fitted.predict_proba(fold.X_outside))
        except ValueError as cause:
            refusal = cause
            proba.append(None)
    fitted_proba = [p for p in proba if p is not None]
    if not fitted_proba:
        raise refusal
    undefined = np.full_like(fitted_proba[0], np.nan)
    return np.stack([undefined if p is None else p for p in proba])


def _log_losses(by_choice: Proba, y: NDArray[np.integer]) -> NDArray[np.float64]:
    """Mean log loss of each choice on the rows held out; infinite where a fold cannot bear it."""
    held_out = np.flatnonzero(np.isfinite(by_choice).all(axis=2).any(axis=0))
    of_label = by_choice[:, held_out, y[held_out]]
    loss = -np.log(np.maximum(of_label, _TINY)).mean(axis=1)
    return np.where(np.isfinite(loss), loss, np.inf)


def _settled(fit: Fit) -> dict[str, Any]:
    """Constructor parameters that make a head's own choice again."""
    return dict(getattr(fit.models[0][-1], "settled_params_", {}))


def _path(
    model: Any, choices: Sequence[Mapping[str, Any]], losses: NDArray[np.float64] | None
) -> list[Mapping[str, Any]]:
    """The log loss of each choice, by folds or by the head's own hold-out."""
    if losses is None:
        return list(getattr(model[-1], "path_", ()))
    return [
        {**choice, "log_loss": float(loss)}
        for choice, loss in zip(choices, losses, strict=True)
        if np.isfinite(loss)
    ]
