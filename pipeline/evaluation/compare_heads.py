"""Trained heads compared in pairs on the same images, and the set that holds the best.

This answers which *trained* head is better on this population; which procedure is better
for data like this is another question, see ``pipeline.compare``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.data.patients import DRAWS
from pipeline.evaluation.auroc import paired_delong
from pipeline.evaluation.bootstrap import PAIRED_DRAWS, bootstrap_values
from pipeline.evaluation.intervals import lengthened, percentile_interval, unseen
from pipeline.evaluation.metrics import METRICS, is_right, score
from pipeline.evaluation.paired_tests import holm, mcnemar, sign_flip, verdict
from pipeline.evaluation.scores import Place, Proba, has_variance
from pipeline.evaluation.selection import confidence_set

#: What heads are compared by.
COMPARED_BY = ("accuracy", "auroc")
#: Patients of each class that a comparison by AUROC needs: of fewer the normal law of DeLong's
#: test is not to be believed, and p may be 1e-25 for three patients.
AREA_PATIENTS = 10
#: A difference is called one below this p, adjusted over the heads.
ALPHA = 0.05
#: What heads are compared with.
BASELINE, BEST = "baseline", "best by validation"
_BINARY = 2


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One head against another on the same images.

    Attributes:
        baseline: The head that it is compared with.
        reference: What that is: the declared ``baseline``, or ``best by validation``.
        role: ``validation`` or ``target``.
        difference: Head minus the other; ``low`` and ``high`` are its 95 % interval.
        ci_method: How the interval was made.
        p: Two-sided, of "no difference".
        p_method: How p was computed.
        p_holm: Adjusted over the heads of this table.
        only_head: Images that this head alone has right (accuracy; else None).
        only_baseline: Images that the other alone has right.
        verdict: ``better`` or ``worse`` (outside the interval, and p_holm below 0.05),
            ``equivalent`` (within one point) or ``inconclusive``.
    """

    head: str
    baseline: str
    reference: str
    domain: str
    role: str
    metric: str
    difference: float
    low: float
    high: float
    ci_method: str
    p: float
    p_method: str
    p_holm: float
    only_head: int | None
    only_baseline: int | None
    verdict: str


@dataclass(frozen=True, kw_only=True)
class BestSet:
    """Heads that cannot be told from the best on one domain (model confidence set).

    Attributes:
        members: They stay; the best is among them with a chance of ``1 - alpha``.
        p: Of every head; it stays at each alpha below.
    """

    domain: str
    role: str
    metric: str
    members: tuple[str, ...]
    p: Mapping[str, float]
    alpha: float


@dataclass(frozen=True, kw_only=True)
class _Difference:
    """Unadjusted: what concerns one pair alone."""

    difference: float
    low: float
    high: float
    ci_method: str
    p: float
    p_method: str
    only_head: int | None = None
    only_baseline: int | None = None


def pairs(
    place: Place,
    proba: Mapping[str, Proba],
    baseline: str,
    *,
    reference: str = BASELINE,
    draws: int = PAIRED_DRAWS,
) -> list[Pair]:
    """Every head against one of them: the same images, Holm over the heads.

    Accuracy: interval by a paired bootstrap of patients, made longer on a side on which no
    image is seen to differ, for a few images without a difference show no equivalence; p by
    McNemar's exact test where each image is of a patient of its own, else by flipping the
    signs of whole patients.
    AUROC of two classes: paired DeLong, by patient. It is left out where a class is in
    fewer than ``AREA_PATIENTS`` patients.

    Args:
        place: Where.
        proba: Of its rows, shape ``(n, K)``, for each head.
        baseline: The one that the others are compared with.
        reference: What that is, for the table.
        draws: Bootstrap draws of patients.
    """
    others = [head for head in proba if head != baseline]
    found: list[Pair] = []
    for metric in COMPARED_BY:
        if metric == "auroc" and not _has_area(place, proba[baseline]):
            continue
        compare = _by_accuracy if metric == "accuracy" else _by_area
        unadjusted = compare(place, [proba[head] for head in others], proba[baseline], draws)
        adjusted = holm([one.p for one in unadjusted])
        for head, one, p_holm in zip(others, unadjusted, adjusted.tolist(), strict=True):
            found.append(
                Pair(
                    head=head,
                    baseline=baseline,
                    reference=reference,
                    domain=place.domain,
                    role=place.role,
                    metric=metric,
                    **vars(one),
                    p_holm=p_holm,
                    verdict=adjusted_verdict(one.low, one.high, p_holm),
                )
            )
    return found


def adjusted_verdict(low: float, high: float, p_holm: float) -> str:
    """The word for an interval, where one head of many is not called better by chance."""
    word = verdict(low, high)
    return "inconclusive" if word in ("better", "worse") and p_holm >= ALPHA else word


def best_sets(
    place: Place, proba: Mapping[str, Proba], *, draws: int = DRAWS, alpha: float = 0.1
) -> list[BestSet]:
    """The model confidence set by each metric of comparison that the place defines."""
    found = []
    for metric in COMPARED_BY:
        if metric == "auroc" and not _has_area(place, next(iter(proba.values()))):
            continue
        result = confidence_set(
            [METRICS[metric](place.label, p) for p in proba.values()],
            place.group,
            place.rng("best set"),
            draws=draws,
            alpha=alpha,
        )
        names = list(proba)
        found.append(
            BestSet(
                domain=place.domain,
                role=place.role,
                metric=metric,
                members=tuple(names[k] for k in result.members),
                p=dict(zip(names, result.p.tolist(), strict=True)),
                alpha=alpha,
            )
        )
    return found


def _has_area(place: Place, proba: Proba) -> bool:
    return proba.shape[1] == _BINARY and has_variance(place, AREA_PATIENTS)


def _by_accuracy(
    place: Place, heads: Sequence[Proba], baseline: Proba, draws: int
) -> list[_Difference]:
    right = [is_right(place.label, p) for p in (*heads, baseline)]
    statistics = [METRICS["accuracy"](place.label, p) for p in (*heads, baseline)]
    values = bootstrap_values(statistics, place.group, place.rng("pairs"), draws=draws)
    found = []
    for head, drawn in zip(right[:-1], values[:-1], strict=True):
        counts, step = mcnemar(head, right[-1]), head.astype(float) - right[-1]
        low, high = lengthened(
            float(step.mean()),
            *percentile_interval(drawn - values[-1]),
            # Images that one alone has right and no draw can show, because none was seen.
            below=0.0 if counts.only_second else unseen(place.patients),
            above=0.0 if counts.only_first else unseen(place.patients),
        )
        by_patient = not place.independent
        found.append(
            _Difference(
                difference=float(step.mean()),
                low=low,
                high=high,
                ci_method="paired patient bootstrap",
                # The same flips for each head: dropping one changes no other p.
                p=sign_flip(step, place.group, place.rng("flips")) if by_patient else counts.p,
                p_method="sign flips by patient" if by_patient else "McNemar exact",
                only_head=counts.only_first,
                only_baseline=counts.only_second,
            )
        )
    return found


def _by_area(place: Place, heads: Sequence[Proba], baseline: Proba, _: int) -> list[_Difference]:
    method = "paired DeLong" if place.independent else "paired DeLong by patient"
    found = []
    for head in heads:
        one = paired_delong(place.label, head[:, 1], baseline[:, 1], group=place.group)
        found.append(_Difference(**vars(one), ci_method=method, p_method=method))
    return found


def best_by_validation(place: Place, proba: Mapping[str, Proba]) -> str:
    """The head of the highest accuracy on these rows; of equals, the lowest log loss.

    It is looked at, never fitted: the name says which row of a table to read, and its own
    score on these rows is too good by what the choice among many is worth.
    """

    def rank(head: str) -> tuple[float, float]:
        accuracy, loss = (score(m, place.label, proba[head]) for m in ("accuracy", "log_loss"))
        return accuracy or 0.0, -(loss or 0.0)

    return max(proba, key=rank)
