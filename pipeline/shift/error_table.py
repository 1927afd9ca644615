"""The error table after Ng: who errs how often on which images, and what the steps mean.

Two columns, source and target: the error of heads that are trained on the target separates
"the target is harder" from "the head does not transfer" (A. Ng, Machine Learning Yearning,
ch. 40-43). A head of few patients errs more, so heads of the target are compared with heads
of as many patients of the source.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from pipeline.data.domain import DomainData
from pipeline.data.patients import DRAWS
from pipeline.errors import StudyError
from pipeline.evaluation.intervals import Interval, rate_interval, share_of
from pipeline.evaluation.metrics import weighted_mean
from pipeline.heads.logistic import fit_weighted
from pipeline.randomness import stream
from pipeline.shift.decompose import Effect, accuracy_loss, divide, domain_draws
from pipeline.shift.domains import INVERSE_PENALTY, SourceModel, standardised
from pipeline.words import counted

#: Rows of the table, in its order: whose error on which images.
ERRORS: Mapping[str, str] = MappingProxyType(
    {
        "human": "a person, source",
        "source_training": "the head, source images that it was fitted to",
        "source_new_patients": "the head, source patients that it was not fitted to",
        "source_few_patients": "heads of as few source patients as the target has, others of them",
        "target": "the head, target",
        "target_trained": "heads trained on the target, its patients that they were not fitted to",
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
#: Heads that are fitted to few patients, in each domain.
HEADS = 20
#: Share of a domain's patients that such a head is fitted to, at most, as in five folds.
_FITTED = 0.8
#: Patients of each class that the target needs, so that heads can be trained on it.
_FEWEST = 5


@dataclass(frozen=True, kw_only=True)
class ErrorTable:
    """Errors, the steps between them, and the steps that cannot be known.

    Attributes:
        errors: By a key of :data:`ERRORS`; a person's has no bounds.
        steps: Those of :data:`CHAIN`, then ``target_hardness`` and ``transfer_gap``, which add
            up to the mismatch.
        not_identifiable: Step to the reason why there is no number.
    """

    errors: Mapping[str, Interval]
    steps: Mapping[str, Effect]
    not_identifiable: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class FewPatients:
    """Errors of heads that were fitted to few patients of a domain.

    Attributes:
        data: The images that some head was not fitted to.
        error: Shape (n,): share of the heads not fitted to an image that err on it.
        spread: Standard deviation of a head's error over the patients it was fitted to.
    """

    data: DomainData
    error: NDArray[np.float64]
    spread: float


def fit_few_patients(
    data: DomainData,
    patients: int,
    rng: np.random.Generator,
    *,
    images: float = np.inf,
    heads: int = HEADS,
) -> FewPatients:
    """Fit heads to some patients each, and test them on the others.

    Args:
        data: Features and labels.
        patients: How many each head is fitted to.
        rng: Chooses them, again where a class is missing.
        images: So many images of each, on average; all where there are fewer.
        heads: How many heads.
    """
    label = data.labelled()
    names, member = np.unique(data.group, return_inverse=True)
    classes = np.unique(label).size
    chosen: list[tuple[NDArray[np.bool_], NDArray[np.bool_]]] = []
    while len(chosen) < heads:
        known = np.isin(member, rng.permutation(names.size)[:patients])
        fitted = known & (rng.random(len(data)) < images * names.size / len(data))
        if np.unique(label[fitted]).size == classes:
            chosen.append((fitted, known))
    fitted_to, seen_by = (np.stack(masks) for masks in zip(*chosen, strict=True))
    rows = standardised(data.embedded())
    fits = fit_weighted(rows, label, C=INVERSE_PENALTY, weights=fitted_to.astype(np.float64))
    tested = np.asarray(~seen_by.all(axis=0))
    wrong = np.where(seen_by, np.nan, fits.proba(rows).argmax(axis=2) != label)[:, tested]
    by_image = np.nanmean(wrong, axis=0)
    # Heads are compared on the same images, because some images are harder than others. What
    # varies from image to image is no property of a head. Heads that share their patients
    # differ less than heads of other patients would; more than half makes too rough a guess.
    rest = wrong - by_image
    noise = np.nanvar(rest, axis=1) / np.isfinite(rest).sum(axis=1)
    variance = max(0.0, np.nanmean(rest, axis=1).var(ddof=1) - noise.mean())
    spread = np.sqrt(variance / (1 - min(0.5, patients / names.size)))
    return FewPatients(data=data.take(tested), error=by_image, spread=float(spread))


def error_table(
    model: SourceModel, target: DomainData, *, human: float | None = None, seed: int = 0
) -> ErrorTable:
    """Fill the table for one target whose labels are open.

    Args:
        model: The source with its head.
        target: Features, labels, and probabilities of that head.
        human: Error of a person on the source, in [0, 1]; None where nobody measured it.
        seed: Of the draws, which are those of :func:`pipeline.shift.decompose.decompose`.

    Raises:
        StudyError: The target has no labels, or the human error is not a rate.
    """
    source = model.data
    table = fill_table(
        model.scored(source),
        source,
        target,
        human=human,
        seed=seed,
    )
    if why := _too_few(target, model.classes):
        return replace(table, not_identifiable={**table.not_identifiable, "target_hardness": why})
    patients = round(_FITTED * min(source.patients, target.patients))
    images = min(len(data) / data.patients for data in (source, target))
    few = [
        fit_few_patients(
            data, patients, stream(f"few patients of the {data.role}", seed), images=images
        )
        for data in (source, target)
    ]
    return with_transfer(table, source, target, few=(few[0], few[1]), seed=seed)


def _too_few(target: DomainData, classes: int) -> str | None:
    """Why no head can be trained on a target; None where one can."""
    label = target.labelled()
    least = min(np.unique(target.group[label == k]).size for k in range(classes))
    if least >= _FEWEST:
        return None
    few = counted(least, "patient")
    return f"a class has {few} on the target, and {_FEWEST} are needed to train a head"


def fill_table(
    training: DomainData,
    source: DomainData,
    target: DomainData,
    *,
    human: float | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> ErrorTable:
    """The errors of the head itself, and the steps between them.

    Args:
        training: The source, with probabilities of the head that was fitted to it.
        source: The source, with probabilities out of fold.
        target: With probabilities of the head.
        human: See :func:`error_table`.
        seed: See :func:`error_table`.
        draws: Bootstrap draws of patients.

    Raises:
        StudyError: The human error is not a rate, or labels are absent.
    """
    if human is not None and not 0 <= human <= 1:
        raise StudyError(f"the human error is {human}; it must be a rate from 0 to 1")
    rows = {"source_training": training, "source_new_patients": source, "target": target}
    errors = {name: rate_interval(data.wrong(), data.group) for name, data in rows.items()}
    by_domain = {data.role: domain_draws(data, seed, draws) for data in (source, target)}
    drawn = {name: by_domain[data.role].mean(data.wrong()) for name, data in rows.items()}
    if human is not None:
        errors["human"] = Interval(
            estimate=human, low=np.nan, high=np.nan, images=0, patients=0, method="given"
        )
        drawn["human"] = np.full(draws, human)
    known = {step: ends for step, ends in CHAIN.items() if set(ends) <= set(errors)}
    steps = divide(
        "error table",
        {n: errors[to].estimate - errors[start].estimate for n, (to, start) in known.items()},
        {name: drawn[to] - drawn[start] for name, (to, start) in known.items()},
        data=(source, target),
        edges={n: (_rate(errors[start]), _rate(errors[to])) for n, (to, start) in known.items()},
    )
    # The same number as the loss of accuracy, so the same interval.
    loss = accuracy_loss(source, target)
    mismatch = replace(steps["mismatch"], low=loss.low, high=loss.high, method=loss.method)
    return ErrorTable(
        errors={name: errors[name] for name in ERRORS if name in errors},
        steps={**steps, "mismatch": mismatch},
        not_identifiable={step: "no human error is given" for step in CHAIN if step not in known},
    )


def with_transfer(
    table: ErrorTable,
    source: DomainData,
    target: DomainData,
    *,
    few: tuple[FewPatients, FewPatients],
    seed: int = 0,
    draws: int = DRAWS,
) -> ErrorTable:
    """Add the two parts of the mismatch: it is the hardness and the gap together.

    Args:
        table: From :func:`fill_table`.
        source: See :func:`fill_table`.
        target: See :func:`fill_table`.
        few: Heads of the source and of the target, fitted to as many patients each.
        seed: See :func:`error_table`.
        draws: See :func:`fill_table`.
    """
    errors = {
        name: share_of(weighted_mean(one.error), one.data.group).interval()
        for name, one in zip(("source_few_patients", "target_trained"), few, strict=True)
    }
    level = {n: error.estimate for n, error in {**table.errors, **errors}.items()}
    by_domain = [domain_draws(data, seed, draws) for data in (source, target)]
    easy, hard = (
        drawn.of(one.data.group).mean(one.error) for drawn, one in zip(by_domain, few, strict=True)
    )
    # Other patients to learn from move the errors too: of the target's heads, which share
    # theirs, as much as of one head; of the source's, which do not, the mean of many is taken.
    spread = max(one.spread for one in few) * np.sqrt(1 + 1 / HEADS)
    hard += spread * stream("patients to learn from", seed).standard_normal(draws)
    loss = by_domain[1].mean(target.wrong()) - by_domain[0].mean(source.wrong())
    hardness = level["target_trained"] - level["source_few_patients"]
    gap = level["target"] - level["source_new_patients"] - hardness
    steps = divide(
        "transfer",
        {"target_hardness": hardness, "transfer_gap": gap},
        {"target_hardness": hard - easy, "transfer_gap": loss - (hard - easy)},
        data=(source, target),
        edges={
            "target_hardness": (
                _rate(errors["source_few_patients"]),
                _rate(errors["target_trained"]),
            ),
            "transfer_gap": (_rate(errors["target_trained"]), _rate(table.errors["target"])),
        },
    )
    both = {**table.errors, **errors}
    return replace(
        table,
        errors={name: both[name] for name in ERRORS if name in both},
        steps={**table.steps, **steps},
    )


def _rate(error: Interval) -> tuple[float, int] | None:
    """An error and its patients; a person's has none, for it is given."""
    return (error.estimate, error.patients) if error.images else None
