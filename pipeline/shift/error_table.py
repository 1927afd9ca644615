"""The error table after Ng: who errs how often on which images, and what the steps mean.

Two columns, source and target: the error of a head that is trained on the target separates
"the target is harder" from "the head does not transfer" (A. Ng, Machine Learning Yearning,
ch. 40-43). Each step has two intervals: of other images, by drawing patients, and of other
training patients, by fitting the heads again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.domain import DomainData
from pipeline.data.patients import DRAWS, draw_patients
from pipeline.errors import StudyError
from pipeline.evaluation.intervals import Interval, Z, rate_interval
from pipeline.heads.logistic import WeightedFits, fit_weighted
from pipeline.randomness import stream
from pipeline.shift.decompose import Effect, accuracy_loss, divide, domain_draws
from pipeline.shift.domains import SourceModel, fit_source

#: Rows of the table, in its order: whose error on which images.
ERRORS: Mapping[str, str] = MappingProxyType(
    {
        "human": "a person, source",
        "source_training": "the head, source images that it was fitted to",
        "source_new_patients": "the head, source patients that it was not fitted to",
        "target": "the head, target",
        "target_trained": "a head trained on the target, its patients that it was not fitted to",
    }
)
#: Step: (to, from). These lead from a person's error to that on the target.
CHAIN: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "avoidable_bias": ("source_training", "human"),
        "variance": ("source_new_patients", "source_training"),
        "mismatch": ("target", "source_new_patients"),
    }
)
#: The two parts of the mismatch.
TRANSFER: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "target_hardness": ("target_trained", "source_new_patients"),
        "transfer_gap": ("target", "target_trained"),
    }
)
#: Why there is no number, by the error that is missing.
_ABSENT: Mapping[str, str] = MappingProxyType(
    {
        "human": "no human error is given",
        "target_trained": "no head was trained on the target",
    }
)
#: Heads that are fitted again by default: a standard error from 25 is right to about 14 %.
REFITS = 25


@dataclass(frozen=True, kw_only=True)
class Step(Effect):
    """A step from one error to another.

    Attributes:
        refit_low: Lower end of the 95 % interval over heads fitted to other patients; None
            where none was fitted.
        refit_high: Upper end.
    """

    refit_low: float | None = None
    refit_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class ErrorTable:
    """Errors, the steps between them, and the steps that cannot be known.

    Attributes:
        errors: By a key of :data:`ERRORS`; a person's has no bounds.
        steps: Those of :data:`CHAIN`, then those of :data:`TRANSFER`.
        not_identifiable: Step to the reason why there is no number.
        refits: Heads that were fitted again in each domain.
    """

    errors: Mapping[str, Interval]
    steps: Mapping[str, Step]
    not_identifiable: Mapping[str, str]
    refits: int = 0


@dataclass(frozen=True, kw_only=True)
class Refits:
    """Heads of one domain, each fitted to patients drawn with replacement.

    Attributes:
        weights: Shape (B, n): how often each row was drawn.
        heads: The B heads.
    """

    weights: NDArray[np.float64]
    heads: WeightedFits

    def wrong(self, rows: NDArray[np.floating], label: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Whether each head errs on each row, shape (B, m).

        Args:
            rows: Shape (m, d), standardised by the domain.
            label: Shape (m,).
        """
        return np.asarray(self.heads.proba(rows).argmax(axis=2) != label)

    def drawn_error(self, wrong: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Error of each head on the rows it was fitted to, shape (B,), of ``wrong`` (B, n)."""
        return np.asarray((wrong * self.weights).sum(axis=1) / self.weights.sum(axis=1))

    def left_out_error(self, wrong: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Error of each head on the patients it was not fitted to, shape (B,)."""
        unseen = self.weights == 0
        return np.asarray((wrong * unseen).sum(axis=1) / np.maximum(unseen.sum(axis=1), 1))


def refit(model: SourceModel, rng: np.random.Generator, *, count: int = REFITS) -> Refits:
    """Fit the head again and again to patients drawn with replacement.

    Args:
        model: Of the domain.
        rng: Source of the draws; each has every class.
        count: Number of heads.
    """
    label = model.data.labelled()
    weights = draw_patients(model.data.group, rng, draws=count, label=label).weights()
    rows = model.standard
    heads = fit_weighted(rows, label, C=model.inverse_penalty, weights=weights)
    return Refits(weights=weights, heads=heads)


def error_table(
    model: SourceModel,
    target: DomainData,
    *,
    refits: Refits | None = None,
    human: float | None = None,
    seed: int = 0,
) -> ErrorTable:
    """Fill the table for one target whose labels are open.

    Args:
        model: The source with its head.
        target: Features, labels, and probabilities of that head.
        refits: Heads of the source fitted to other patients; as many are then fitted to the
            target. None: steps have no interval over fits.
        human: Error of a person on the source, in [0, 1]; None where nobody measured it.
        seed: Of the draws.

    Raises:
        StudyError: The target has no labels, or the human error is not a rate.
    """
    source, label = model.data, target.labelled()
    of_target = _trained_on(target, model)
    rows = {
        "source_training": source.with_(proba=model.head.predict_proba(model.standard)),
        "source_new_patients": source,
        "target": target,
    }
    if of_target is not None:
        rows["target_trained"] = of_target.data
    table = fill_table(rows, human=human, seed=seed)
    if refits is None:
        return table
    of_source = refits.wrong(model.standard, source.labelled())
    errors = {
        "source_training": refits.drawn_error(of_source),
        "source_new_patients": refits.left_out_error(of_source),
        "target": refits.wrong(model.standardise(target.embedded()), label).mean(axis=1),
    }
    if of_target is not None:
        # Drawn independently of the source's.
        again = refit(of_target, stream("heads of the target", seed), count=len(refits.weights))
        wrong = again.wrong(of_target.standard, of_target.data.labelled())
        errors["target_trained"] = again.left_out_error(wrong)
    return _with_refits(table, errors, count=len(refits.weights))


def fill_table(
    rows: Mapping[str, DomainData],
    *,
    human: float | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> ErrorTable:
    """The table from labels and probabilities alone.

    Args:
        rows: By a key of :data:`ERRORS`, without ``human``; those of one domain are paired.
        human: Error of a person on the source, in [0, 1].
        seed: Of the draws, which are those of :func:`pipeline.shift.decompose.decompose`.
        draws: Bootstrap draws of patients.

    Raises:
        StudyError: The human error is not a rate, or labels are absent.
    """
    if human is not None and not 0 <= human <= 1:
        raise StudyError(f"the human error is {human}; it must be a rate from 0 to 1")
    wrong = {name: data.wrong() for name, data in rows.items()}
    by_domain = {
        domain.role: domain_draws(domain, seed, draws) for domain in _each_domain(rows.values())
    }
    drawn = {name: by_domain[data.role].of(data.group) for name, data in rows.items()}
    level = {name: float(errs.mean()) for name, errs in wrong.items()}
    curves = {name: drawn[name].mean(errs) for name, errs in wrong.items()}
    errors = {name: rate_interval(wrong[name], data.group) for name, data in rows.items()}
    if human is not None:
        level["human"], curves["human"] = human, np.full(draws, human)
        errors["human"] = Interval(
            estimate=human, low=np.nan, high=np.nan, images=0, patients=0, method="given"
        )
    missing = {
        step: _ABSENT.get(end, f"no error of {ERRORS[end]} is given")
        for step, ends in {**CHAIN, **TRANSFER}.items()
        for end in ends
        if end not in level
    }
    steps: dict[str, Step] = {}
    for division, ends in (("error table", CHAIN), ("transfer", TRANSFER)):
        known = {step: pair for step, pair in ends.items() if step not in missing}
        if known:
            steps |= _steps(division, known, rows, level, curves)
    if "mismatch" in steps:
        # The same number as the loss of accuracy, so the same interval.
        loss = accuracy_loss(rows["source_new_patients"], rows["target"])
        steps["mismatch"] = replace(
            steps["mismatch"], low=loss.low, high=loss.high, method=loss.method
        )
    return ErrorTable(
        errors={name: errors[name] for name in ERRORS if name in errors},
        steps=steps,
        not_identifiable=missing,
    )


def _steps(
    division: str,
    ends: Mapping[str, tuple[str, str]],
    rows: Mapping[str, DomainData],
    level: Mapping[str, float],
    curves: Mapping[str, NDArray[np.float64]],
) -> dict[str, Step]:
    """Steps of one division, from the errors and the same in each draw."""
    effects = divide(
        division,
        {step: level[to] - level[start] for step, (to, start) in ends.items()},
        {step: curves[to] - curves[start] for step, (to, start) in ends.items()},
        data=_each_domain(rows.values()),
        edges={
            step: (_rate(rows.get(start), level[start]), _rate(rows.get(to), level[to]))
            for step, (to, start) in ends.items()
        },
    )
    return {name: Step(**vars(effect)) for name, effect in effects.items()}


def _each_domain(rows: Iterable[DomainData]) -> list[DomainData]:
    return list({data.role: data for data in rows}.values())


def _rate(data: DomainData | None, level: float) -> tuple[float, int] | None:
    """An error and its patients; a person's has none, for it is given."""
    return None if data is None else (level, data.patients)


def _trained_on(target: DomainData, model: SourceModel) -> SourceModel | None:
    """A head of the target; None where it, or a fold of it, lacks a class."""
    try:
        of_target = fit_source(target, inverse_penalty=model.inverse_penalty)
    except (StudyError, ValueError):
        return None
    return of_target if of_target.classes == model.classes else None


def _with_refits(
    table: ErrorTable, errors: Mapping[str, NDArray[np.floating[Any]]], *, count: int
) -> ErrorTable:
    """How far each step moves when the heads are fitted to other patients.

    A refitted head has seen fewer patients and so errs a little more: only the spread of
    its steps is taken, not their level.
    """
    steps = dict(table.steps)
    for name, step in steps.items():
        to, start = {**CHAIN, **TRANSFER}[name]
        half = Z * float(np.std(errors[to] - errors.get(start, 0.0), ddof=1))
        steps[name] = replace(step, refit_low=step.estimate - half, refit_high=step.estimate + half)
    return replace(table, steps=steps, refits=count)
