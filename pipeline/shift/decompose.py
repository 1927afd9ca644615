"""Take the loss of accuracy between two domains apart: by group, by score, by threshold, by head.

The loss is error(target) - error(source). Each decomposition splits it into two terms that add
up to it; decompositions are views of one loss and do not add to each other. Patients of source and
target are drawn independently. Within a domain all statistics share one set of draws, so that
terms of one decomposition stay paired.

The error table after Ng says who errs how often on which images. The error of heads that are
trained on the target separates "the target is harder" from "the head does not transfer" (A. Ng,
Machine Learning Yearning, ch. 40-43). A head of few patients errs more, so they are compared
with heads of as many patients of the source.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from pipeline.data.attributes import Grouping
from pipeline.data.domain import DomainData, mean_and_scale
from pipeline.data.patients import (
    DRAWS,
    PatientDraws,
    WeightedStatistic,
    Weights,
    draw_patients,
    patient_folds,
)
from pipeline.evaluation.bootstrap import percentile_interval
from pipeline.evaluation.compare_heads import strata
from pipeline.evaluation.intervals import (
    Interval,
    difference_bounds,
    rate_interval,
    rate_of,
    wilson,
)
from pipeline.evaluation.metrics import METRICS, weighted_mean
from pipeline.heads.logistic import fit_weighted
from pipeline.randomness import stream
from pipeline.shift.head import INVERSE_PENALTY
from pipeline.words import counted

_TINY = 1e-300
#: Positive is called where the second class's probability is at least this.
_THRESHOLD = 0.5
#: Patients of a group that show how well the head does in it; share of a target that a group may
#: have of which the source has fewer.
FEW_PATIENTS, _FEW_IMAGES = 10, 0.05
#: Heads that are fitted to few patients, in each domain.
_HEADS = 20
#: Share of a domain's patients that such a head is fitted to, at most, as in five folds.
_FITTED = 0.8
#: Patients of each class that the target needs, so that heads can be trained on it.
_FEWEST = 5


class _Rate(NamedTuple):
    """An error rate, in how many patients it was seen, and its weight in an effect."""

    value: float
    patients: int
    weight: float = 1.0


_Edges = tuple[Sequence[_Rate], Sequence[_Rate]]
"""The rates that an effect starts from, and those that it leads to."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One term of a decomposition of the loss, a share of the images; above 0 the target loses.

    The interval is 95 %, by patient. ``largest`` is the share of the draws in which it is the
    largest of its decomposition; None where it is alone.
    """

    name: str
    decomposition: str
    estimate: float
    low: float
    high: float
    largest: float | None = None


def decompose(
    source: DomainData,
    target: DomainData,
    *,
    groupings: Iterable[tuple[Grouping, Grouping]] = (),
    seed: int = 0,
    draws: int = DRAWS,
) -> dict[str, Effect]:
    """Take the loss from source to target apart in every way.

    Args:
        source: Labels and probabilities that the head did not train on.
        target: Labels and probabilities of the same head; two patients or more.
        groupings: Of both domains, by an attribute of the patients. Left out are those with a
            group of over 5 % of the target of which the source has under 10 patients.
        seed: Of draws and halves.
        draws: Bootstrap draws of patients.

    Returns:
        By name; the README beside this file lists them by decomposition. The threshold and the
        AUROC need two classes, and both in both domains.

    Raises:
        StudyError: Labels are absent.
    """
    both = [
        _Outcome(data, data.wrong(), _domain_draws(data, seed, draws)) for data in (source, target)
    ]
    labels = (source.get_label(), target.get_label())
    effects = {
        "accuracy_loss": _loss("accuracy", "all", source, target),
        **_by_group(both, labels, "class", ("class_mix", "within_class")),
        **_by_score(*both),
    }
    for first, second in groupings:
        if not unseen_groups(source, first, second):
            name, members = first.attribute, (first.member, second.member)
            terms = (f"{name}_mix", f"within_{name}")
            effects |= _by_group(both, members, f"by {name}", terms)
    if source.get_proba().shape[1] == 2 and all(np.unique(label).size == 2 for label in labels):
        effects |= _by_threshold(*both, seed=seed)
        effects["auroc_loss"] = _loss("auroc", "AUROC", source, target)
    return effects


def _loss(metric: str, by: str, source: DomainData, target: DomainData) -> Effect:
    """How much a metric falls from the source to the target."""
    rates = []
    for data in (source, target):
        label = data.get_label()
        statistic, of = METRICS[metric](label, data.get_proba()), strata(metric, label, data.group)
        rates.append(rate_of(statistic, data.group, *of))
    low, high = difference_bounds(rates[0], rates[1], paired=False)
    gap = rates[0].estimate - rates[1].estimate
    return Effect(name=f"{metric}_loss", decomposition=by, estimate=gap, low=low, high=high)


def _domain_draws(data: DomainData, seed: int, draws: int = DRAWS) -> PatientDraws:
    """The draws of a domain's patients; every decomposition and table of one seed shares them."""
    return draw_patients(data.group, stream(data.role, seed), draws=draws)


def _effects_of(
    by: str, terms: Mapping[str, NDArray[np.float64]], edges: Mapping[str, _Edges]
) -> dict[str, Effect]:
    """Terms of one decomposition, with how surely each is the largest of them.

    Args:
        by: Name of the decomposition.
        terms: Of the data themselves, then of each draw, shape (1 + B,); NaN where undefined.
        edges: By term. Where a rate is 0 or 1 all draws agree on it, and the interval is
            lengthened by what was not seen.
    """
    table = np.stack([values[1:] for values in terms.values()])
    defined = table[:, np.isfinite(table).all(axis=0)]
    largest = defined == defined.max(axis=0, initial=-np.inf)
    # Terms that are equal share a draw: of nothing but zeros none is the largest.
    wins = (largest / largest.sum(axis=0)).sum(axis=1) / max(1, defined.shape[1])
    effects = (_effect(by, *term, edges.get(term[0], ((), ()))) for term in terms.items())
    return {
        effect.name: replace(effect, largest=share)
        for effect, share in zip(effects, wins.tolist(), strict=True)
    }


def _effect(
    by: str,
    name: str,
    values: NDArray[np.float64],
    edges: _Edges,
) -> Effect:
    """See :func:`_effects_of`."""
    estimate, interval = float(values[0]), percentile_interval(values[1:])
    low, high = _lengthened_interval(estimate, interval, *edges)
    return Effect(name=name, decomposition=by, estimate=estimate, low=low, high=high)


def _lengthened_interval(
    estimate: float,
    interval: tuple[float, float],
    starts: Sequence[_Rate],
    ends: Sequence[_Rate],
) -> tuple[float, float]:
    """An interval of the weighted sum ends - starts, where a rate of 0 or 1 may yet be another.

    Each end moves out as independent errors add, the square of its distance from the
    estimate and the square of what is missing (MOVER; Zou and Donner 2008).
    """
    (low, high), below, above = interval, 0.0, 0.0
    for rate, is_end in [(rate, False) for rate in starts] + [(rate, True) for rate in ends]:
        if rate.value in (0, 1):
            # The highest rate that may well be of which none was seen.
            room = rate.weight * wilson(0, rate.patients)[1]
            if (rate.value == 1) == is_end:
                below = float(np.hypot(below, room))
            else:
                above = float(np.hypot(above, room))
    return (
        max(-1.0, estimate - float(np.hypot(estimate - low, below))) if below else low,
        min(1.0, estimate + float(np.hypot(high - estimate, above))) if above else high,
    )


class _Outcome(NamedTuple):
    """A labelled domain with what the head got wrong and the draws of its patients."""

    data: DomainData
    wrong: NDArray[np.bool_]
    draws: PatientDraws

    @property
    def rate(self) -> _Rate:
        return _Rate(float(self.wrong.mean()), self.data.patients)

    def means(self, event: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Of all rows, then of each draw, shape ``(1 + B,)``."""
        return np.append(event.mean(), self.draws.mean(event))


def unseen_groups(source: DomainData, of_source: Grouping, of_target: Grouping) -> list[str]:
    """Larger groups of the target in which the source does not show how well the head does."""
    share = np.bincount(of_target.member) / len(of_target.member)
    return [
        of_target.names[k]
        for k in np.flatnonzero(share > _FEW_IMAGES)
        if np.unique(source.group[of_source.member == k]).size < FEW_PATIENTS
    ]


def _by_group(
    both: Sequence[_Outcome],
    members: Sequence[NDArray[np.integer]],
    by: str,
    terms: tuple[str, str],
) -> dict[str, Effect]:
    """Split the loss into the mix of groups and the error within them (Kitagawa 1955).

    mix = sum_k (q_k - p_k)(eP_k + eQ_k) / 2 and within = sum_k (eQ_k - eP_k)(p_k + q_k) / 2
    with p, q the shares of the groups and eP, eQ the errors within each: the Shapley value
    of the changes {P(G), P(X, Y | G)} (Zhang et al., arXiv 2210.10769). A group that one
    domain lacks is taken to have the other's error there, so its loss is mix.
    """
    groups = range(max(int(member.max()) for member in members) + 1)
    (p, wrong_p), (q, wrong_q) = (
        (
            np.stack([outcome.means(member == k) for k in groups]),
            np.stack([outcome.means(outcome.wrong & (member == k)) for k in groups]),
        )
        for outcome, member in zip(both, members, strict=True)
    )
    e_p, e_q = wrong_p / np.maximum(p, _TINY), wrong_q / np.maximum(q, _TINY)
    e_p, e_q = np.where(p > 0, e_p, e_q), np.where(q > 0, e_q, e_p)
    weight = (p + q) / 2
    mix, within = ((q - p) * (e_p + e_q) / 2).sum(axis=0), ((e_q - e_p) * weight).sum(axis=0)
    # What a group without an error may yet hold is within it; the mix weighs errors seen.
    in_both = np.flatnonzero((p[:, 0] > 0) & (q[:, 0] > 0))
    starts, ends = (
        [
            _Rate(error[k, 0], np.unique(outcome.data.group[member == k]).size, weight[k, 0])
            for k in in_both
        ]
        for outcome, member, error in zip(both, members, (e_p, e_q), strict=True)
    )
    return _effects_of(by, {terms[0]: mix, terms[1]: within}, {terms[1]: (starts, ends)})


def _by_score(source: _Outcome, target: _Outcome) -> dict[str, Effect]:
    """Split the loss by r, the isotonic error given the confidence in each domain.

    confidence_shift = E_T[r_S] - e_S: the target has other confidences. y_given_score =
    e_T - E_T[r_S] = E_T[r_T - r_S] exactly, because pooling keeps the mean: the same
    confidence is wrong more often. It is what every estimate without labels must miss.
    """
    confidence, of_target = (outcome.data.get_proba().max(axis=1) for outcome in (source, target))
    knots, knot = np.unique(confidence, return_inverse=True)

    def expected_error(w_source: NDArray[np.float64], w_target: NDArray[np.float64]) -> float:
        # Sorted once for all draws: scikit-learn's class takes five times as long.
        mass = np.bincount(knot, weights=w_source)
        wrong = np.bincount(knot, weights=w_source * source.wrong)
        used = mass > 0
        curve = isotonic_regression(wrong[used] / mass[used], weights=mass[used], increasing=False)
        return float(w_target @ np.interp(of_target, knots[used], curve.x) / w_target.sum())

    expected = [expected_error(np.ones(len(knot)), np.ones(len(of_target)))]
    for which in max(source, target, key=lambda outcome: len(outcome.data)).draws.blocks():
        drawn = zip(source.draws.weights(which), target.draws.weights(which), strict=True)
        expected += [expected_error(*weights) for weights in drawn]
    e_s, e_t = source.means(source.wrong), target.means(target.wrong)
    return _effects_of(
        "score",
        {"confidence_shift": np.subtract(expected, e_s), "y_given_score": e_t - expected},
        {"confidence_shift": ([source.rate], []), "y_given_score": ([], [target.rate])},
    )


def _by_threshold(source: _Outcome, target: _Outcome, *, seed: int) -> dict[str, Effect]:
    """Split the loss at the target's own best threshold.

    threshold = e_T(tau_S) - e_T(tau_T): what the source's threshold costs; discrimination =
    e_T(tau_T) - e_S(tau_S): what no threshold regains. tau_T is found on one half of the
    target's patients and scored on the other, in each draw anew.
    """
    best_error = _cross_fitted_error(target.data, seed)
    best = np.append(best_error(np.ones((1, len(target.data)))), target.draws.apply(best_error))
    e_s, e_t = (
        outcome.means((outcome.data.get_proba()[:, 1] >= _THRESHOLD) != (outcome.data.label == 1))
        for outcome in (source, target)
    )
    ends = [_Rate(e_s[0], source.data.patients)], [_Rate(best[0], target.data.patients)]
    return _effects_of(
        "threshold",
        {"threshold": e_t - best, "discrimination": best - e_s},
        {"discrimination": ends},
    )


def _cross_fitted_error(data: DomainData, seed: int) -> WeightedStatistic:
    """The statistic "error at the threshold that is best on the other half of the patients"."""
    positive, score = data.get_label() == 1, data.get_proba()[:, 1]
    folds = patient_folds(None, data.group, folds=2, seed=seed)
    halves = [rows[np.argsort(score[rows], kind="stable")] for _, rows in folds]
    scores = [np.unique(score[half]) for half in halves]
    thresholds = [np.r_[-np.inf, (s[:-1] + s[1:]) / 2, np.inf] for s in scores]
    # Rows of a half that lie below each threshold of itself or the other one.
    below = [[np.searchsorted(score[half], t) for t in thresholds] for half in halves]

    def statistic(weights: Weights) -> NDArray[np.float64]:
        errors = [_errors_by_cut(weights[:, half], positive[half]) for half in halves]
        best = [errors[k][:, below[k][k]].argmin(axis=1) for k in (0, 1)]
        draw = np.arange(len(weights))
        crossed = [errors[k][draw, below[k][1 - k][best[1 - k]]] for k in (0, 1)]
        return np.asarray(sum(crossed) / weights.sum(axis=1))

    return statistic


def _errors_by_cut(weights: Weights, positive: NDArray[np.bool_]) -> Weights:
    """Weighted errors where the first 0, 1, ... n of rows sorted by score are called negative.

    Shape ``(b, n + 1)``.
    """
    missed, cleared = (
        np.pad(np.cumsum(weights * rows, axis=1), ((0, 0), (1, 0)))
        for rows in (positive, ~positive)
    )
    return np.asarray(missed + cleared[:, -1:] - cleared)


# The error table.

#: Its rows, in its order.
_ERRORS = (
    "human",  # a person on the source, where the study says how often one errs
    "source_training",  # the head on the source images that it was fitted to
    "source_new_patients",  # the head on source patients that it was not fitted to
    "source_few_patients",  # heads of as few source patients as the target has, on others
    "target",  # the head on the target
    "target_trained",  # heads trained on the target, on patients that they were not fitted to
)


def error_table(
    whole: DomainData,
    target: DomainData,
    *,
    source: DomainData,
    training: DomainData,
    human_error: float | None = None,
    seed: int = 0,
) -> tuple[dict[str, Any], dict[str, Effect]]:
    """Fill the table for one target whose labels are open.

    Args:
        whole: The source: features and labels.
        target: Features, labels, and probabilities of the head in question.
        source: Labels and probabilities of source images that the head was not fitted to.
        training: The same of those that it was fitted to.
        human_error: Of a person on the source, in [0, 1]; None where nobody measured it.
        seed: Of the draws.

    Returns:
        The table, as ``shift.json`` has it: ``errors``, ``steps`` from a person's to that on the
        target, and why one is ``not_identifiable``. And by name the effects ``target_hardness``
        and ``transfer_gap``, where the target has patients enough.

    Raises:
        StudyError: The target has no labels.
    """
    # All patients of the source are drawn: the head may have been tested on some of them.
    of_source, of_target = (_domain_draws(data, seed) for data in (whole, target))
    fitted, unseen, on_target = (
        _Outcome(data, data.wrong(), draws.of(data.group))
        for data, draws in ((training, of_source), (source, of_source), (target, of_target))
    )
    errors = {
        "source_training": rate_interval(fitted.wrong, training.group),
        "source_new_patients": rate_interval(unseen.wrong, source.group),
        "target": rate_interval(on_target.wrong, target.group),
    }
    level_f, level_u, level_t = (of.means(of.wrong) for of in (fitted, unseen, on_target))
    steps, reasons = [], {}
    if human_error is None:
        reasons["avoidable_bias"] = "no human error is given"
    else:  # it has no patients, and no interval
        errors["human"] = Interval(
            estimate=human_error, low=np.nan, high=np.nan, images=0, patients=0, method="given"
        )
        steps.append(
            _effect("error table", "avoidable_bias", level_f - human_error, ([], [fitted.rate]))
        )
    steps.append(
        _effect("error table", "variance", level_u - level_f, ([fitted.rate], [unseen.rate]))
    )
    loss = _loss("accuracy", "all", source, target)
    steps.append(replace(loss, name="mismatch", decomposition="error table"))
    of_class = [target.group[target.get_label() == k] for k in range(source.get_proba().shape[1])]
    least, transfer = min(np.unique(group).size for group in of_class), {}
    if least < _FEWEST:
        reasons["target_hardness"] = (
            f"a class has {counted(least, 'patient')} on the target, and {_FEWEST} are needed to "
            "train a head"
        )
    else:
        (error_s, levels_s), (error_t, levels_t) = _heads_of_few_patients(
            (whole, target), (of_source, of_target), seed
        )
        errors |= {"source_few_patients": error_s, "target_trained": error_t}
        start, middle = ([_Rate(error.estimate, error.patients)] for error in (error_s, error_t))
        hardness = levels_t - levels_s
        transfer = _effects_of(
            "transfer",
            {"target_hardness": hardness, "transfer_gap": level_t - level_u - hardness},
            {"target_hardness": (start, middle), "transfer_gap": (middle, [on_target.rate])},
        )
    rows = [{"name": name, **errors[name].numbers()} for name in _ERRORS if name in errors]
    table = {"errors": rows, "steps": steps, "not_identifiable": reasons}
    return table, transfer


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
        interval = rate_of(weighted_mean(error), group).interval()
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
    label = data.get_label()
    names, member = np.unique(data.group, return_inverse=True)
    classes = np.unique(label).size
    chosen: list[tuple[NDArray[np.bool_], NDArray[np.bool_]]] = []
    while len(chosen) < heads:
        seen = np.isin(member, rng.permutation(names.size)[:patients])
        fitted = seen & (rng.random(len(data)) < images * names.size / len(data))
        if np.unique(label[fitted]).size == classes:
            chosen.append((fitted, seen))
    fitted_to, seen_by = (np.stack(masks) for masks in zip(*chosen, strict=True))
    features = data.get_features()
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
