"""The error table after Ng: who errs how often on which images, and what the steps mean.

The error of heads that are trained on the target separates "the target is harder" from "the
head does not transfer" (A. Ng, Machine Learning Yearning, ch. 40-43). A head of few patients
errs more, so they are compared with heads of as many patients of the source.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.data.domain import DomainData, mean_and_scale
from pipeline.data.patients import DRAWS, PatientDraws
from pipeline.evaluation.intervals import Interval, rate_interval, share_of
from pipeline.evaluation.metrics import weighted_mean
from pipeline.heads.logistic import fit_weighted
from pipeline.randomness import stream
from pipeline.shift.decompose import Effect, Rate, accuracy_loss, divide, domain_draws
from pipeline.shift.domains import INVERSE_PENALTY
from pipeline.words import counted

#: Rows of the table, in its order.
_ERRORS = (
    "human",  # a person on the source, where the study says how often one errs
    "source_training",  # the head on the source images that it was fitted to
    "source_new_patients",  # the head on source patients that it was not fitted to
    "source_few_patients",  # heads of as few source patients as the target has, on others
    "target",  # the head on the target
    "target_trained",  # heads trained on the target, on patients that they were not fitted to
)
#: Step: (to, from). These lead from a person's error to that on the target.
_CHAIN: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "avoidable_bias": ("source_training", "human"),
        "variance": ("source_new_patients", "source_training"),
        "mismatch": ("target", "source_new_patients"),
    }
)
#: Heads that are fitted to few patients, in each domain.
_HEADS = 20
#: Share of a domain's patients that such a head is fitted to, at most, as in five folds.
_FITTED = 0.8
#: Patients of each class that the target needs, so that heads can be trained on it.
_FEWEST = 5


class ErrorTable(NamedTuple):
    """Errors by an entry of :data:`_ERRORS`, steps between them, and why a step is not known."""

    errors: Mapping[str, Interval]
    steps: Mapping[str, Effect]
    not_identifiable: Mapping[str, str]

    def record(self) -> dict[str, Any]:
        """As ``shift.json`` has it."""
        return {
            "errors": [{"name": name, **error.ends()} for name, error in self.errors.items()],
            "steps": list(self.steps.values()),
            "not_identifiable": self.not_identifiable,
        }


def error_table(
    whole: DomainData,
    target: DomainData,
    *,
    source: DomainData,
    training: DomainData,
    human: float | None = None,
    seed: int = 0,
) -> ErrorTable:
    """Fill the table for one target whose labels are open.

    Args:
        whole: The source: features and labels.
        target: Features, labels, and probabilities of the head in question.
        source: Labels and probabilities of source images that the head was not fitted to.
        training: The same of those that it was fitted to.
        human: Error of a person on the source, in [0, 1]; None where nobody measured it.
        seed: Of the draws.

    Raises:
        StudyError: The target has no labels.
    """
    # All patients of the source are drawn: the head may have been tested on some of them.
    of_source, of_target = (domain_draws(data, seed) for data in (whole, target))
    rows = {
        "source_training": (training, of_source),
        "source_new_patients": (source, of_source),
        "target": (target, of_target),
    }
    errors = {name: rate_interval(data.wrong(), data.group) for name, (data, _) in rows.items()}
    levels = {
        name: np.append(errors[name].estimate, draws.of(data.group).mean(data.wrong()))
        for name, (data, draws) in rows.items()
    }
    # A person's error is given: it has no patients, and no interval.
    rates: dict[str, Rate | None]
    rates = {name: (error.estimate, error.patients) for name, error in errors.items()}
    reasons = {}
    if human is None:
        reasons["avoidable_bias"] = "no human error is given"
    else:
        errors["human"] = Interval(
            estimate=human, low=np.nan, high=np.nan, images=0, patients=0, method="given"
        )
        levels["human"], rates["human"] = np.full(1 + DRAWS, human), None
    chain = {step: ends for step, ends in _CHAIN.items() if set(ends) <= set(errors)}
    steps = divide(
        "error table",
        {step: levels[to] - levels[start] for step, (to, start) in chain.items()},
        edges={step: (rates[start], rates[to]) for step, (to, start) in chain.items()},
    )
    # The same number as the loss of accuracy, so the same interval.
    loss = accuracy_loss(source, target)
    steps["mismatch"] = replace(steps["mismatch"], low=loss.low, high=loss.high)
    least = min(
        np.unique(target.group[target.labelled() == k]).size
        for k in range(source.scored().shape[1])
    )
    if least < _FEWEST:
        reasons["target_hardness"] = (
            f"a class has {counted(least, 'patient')} on the target, and {_FEWEST} are needed to "
            "train a head"
        )
    else:
        domains, draws = (whole, target), (of_source, of_target)
        (easy, levels_s), (hard, levels_t) = _heads_of_few_patients(domains, draws, seed)
        errors |= {"source_few_patients": easy, "target_trained": hard}
        start, middle = ((error.estimate, error.patients) for error in (easy, hard))
        hardness, mismatch = levels_t - levels_s, levels["target"] - levels["source_new_patients"]
        steps |= divide(
            "transfer",
            {"target_hardness": hardness, "transfer_gap": mismatch - hardness},
            edges={"target_hardness": (start, middle), "transfer_gap": (middle, rates["target"])},
        )
    return ErrorTable({name: errors[name] for name in _ERRORS if name in errors}, steps, reasons)


def _heads_of_few_patients(
    both: tuple[DomainData, DomainData], draws: tuple[PatientDraws, PatientDraws], seed: int
) -> list[tuple[Interval, NDArray[np.float64]]]:
    """Errors of heads that are fitted to as few patients of each domain, with their draws."""
    patients = round(_FITTED * min(data.patients for data in both))
    images = min(len(data) / data.patients for data in both)
    results, spreads = [], []
    for data, drawn in zip(both, draws, strict=True):
        rng = stream(f"few patients of the {data.role}", seed)
        tested, error, spread = fit_few_patients(data, patients, rng, images=images)
        group = data.group[tested]
        interval = share_of(weighted_mean(error), group).interval()
        levels = np.append(interval.estimate, drawn.of(group).mean(error))
        results.append((interval, levels))
        spreads.append(spread)
    # Other patients to learn from move the errors too: of the target's heads, which share
    # theirs, as much as of one head; of the source's, which do not, the mean of many is taken.
    moved = stream("patients to learn from", seed).standard_normal(DRAWS)
    results[1][1][1:] += max(spreads) * np.sqrt(1 + 1 / _HEADS) * moved
    return results


def fit_few_patients(
    data: DomainData,
    patients: int,
    rng: np.random.Generator,
    *,
    images: float = np.inf,
    heads: int = _HEADS,
) -> tuple[NDArray[np.bool_], NDArray[np.float64], float]:
    """Fit heads to some patients each, and test them on the others.

    Args:
        data: Features and labels.
        patients: How many each head is fitted to.
        rng: Chooses them, again where a class is missing.
        images: So many images of each, on average; all where there are fewer.
        heads: How many heads.

    Returns:
        A mask of the images that some head was not fitted to; of these the share of such heads
        that err on each; and the standard deviation of a head's error over the patients that it
        is fitted to.
    """
    label = data.labelled()
    names, member = np.unique(data.group, return_inverse=True)
    classes = np.unique(label).size
    chosen: list[tuple[NDArray[np.bool_], NDArray[np.bool_]]] = []
    while len(chosen) < heads:
        seen = np.isin(member, rng.permutation(names.size)[:patients])
        fitted = seen & (rng.random(len(data)) < images * names.size / len(data))
        if np.unique(label[fitted]).size == classes:
            chosen.append((fitted, seen))
    fitted_to, seen_by = (np.stack(masks) for masks in zip(*chosen, strict=True))
    features = data.embedded()
    mean, scale = mean_and_scale(features)
    rows = np.asarray((features - mean) / scale, np.float32)
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
    return tested, by_image, float(spread)
