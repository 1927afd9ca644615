"""Subgroups: by hand, whatever the order of rows, and by how often their intervals hold."""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm

from pipeline.data.attributes import Grouping
from pipeline.evaluation.intervals import wilson
from pipeline.shift.domains import Cohort
from pipeline.shift.subgroups import FEW_IMAGES, FEW_PATIENTS, Terms, subgroups, terms_of

CLASSES = ("well", "ill")
METRICS = ("accuracy", "auroc", "sensitivity", "specificity")


def cohort(p, label, patient):
    """Binary probabilities ``p`` of class 1."""
    p = np.asarray(p, float)
    return Cohort(
        features=np.zeros((len(p), 1)),
        probabilities=np.column_stack([1 - p, p]),
        groups=np.asarray(patient),
        labels=np.asarray(label),
    )


def divided(member, names=("F", "M")):
    return Grouping(attribute="sex", names=names, member=np.asarray(member, np.int64))


def by_hand():
    """F: 40 images, M: 30, an image a patient; wrong are 2 ill and 1 well of F, 9 ill of M."""
    p = np.concatenate(
        [np.repeat([0.9, 0.3, 0.1, 0.8], [18, 2, 19, 1]), np.repeat([0.7, 0.2, 0.1], [6, 9, 15])]
    )
    label = np.repeat([1, 0, 1, 0], [20, 20, 15, 15])
    return cohort(p, label, np.arange(70)), divided(np.repeat([0, 1], [40, 30]))


def test_a_case_counted_by_hand():
    """Counts, shares, Wilson's intervals, the worst, and its distance from the rest."""
    (table,) = subgroups("target", *_one(*by_hand()), Terms(classes=CLASSES, threshold=0.5))
    first, second = table.groups
    assert (first.name, first.images, first.patients, first.few) == ("F", 40, 40, None)
    found = {m: (v.estimate, v.low, v.high, v.n) for m, v in first.metrics.items()}
    for name, hits, n in (("accuracy", 37, 40), ("sensitivity", 18, 20), ("specificity", 19, 20)):
        assert found[name] == pytest.approx((hits / n, *wilson(hits, n), n))
    # Of 20 x 20 pairs: 18 ill above all, 2 at 0.3 above 19 and below the one at 0.8.
    assert first.metrics["auroc"].estimate == pytest.approx((18 * 20 + 2 * 19) / 400)
    assert second.metrics["sensitivity"].estimate == 6 / 15
    assert second.metrics["specificity"].estimate == 1
    assert (first.prevalence.estimate, second.prevalence.estimate) == (0.5, 0.5)
    assert dict(table.worst) == {
        "accuracy": "M", "auroc": "F", "sensitivity": "M", "specificity": "F"
    }  # fmt: skip
    rest = second.metrics["sensitivity"].rest
    assert rest.estimate == pytest.approx(6 / 15 - 18 / 20)
    assert rest.below
    assert rest.low < rest.estimate < rest.high < 0
    mirrored = first.metrics["sensitivity"].rest
    assert (-mirrored.high, -mirrored.low) == pytest.approx((rest.low, rest.high), abs=1e-9)
    assert not mirrored.below
    low, high = first.metrics["accuracy"].simultaneous
    assert low < first.metrics["accuracy"].low < first.metrics["accuracy"].high < high


def _one(data, grouping):
    return data, [grouping]


def test_the_order_of_rows_changes_nothing():
    """Patients are drawn by their ids, so a file listed otherwise gives the same numbers."""
    rng = np.random.default_rng(1)
    member, label, score, patient = clustered(rng, (90, 60), (1.3, 1.0))
    terms = Terms(classes=CLASSES, threshold=0.5, draws=200)
    (before,) = subgroups(
        "target", *_one(cohort(expit(score), label, patient), divided(member)), terms
    )
    order = rng.permutation(len(label))
    shuffled = cohort(expit(score)[order], label[order], patient[order])
    (after,) = subgroups("target", *_one(shuffled, divided(member[order])), terms)
    for one, two in zip(before.groups, after.groups, strict=True):
        for name in METRICS:
            a, b = one.metrics[name], two.metrics[name]
            assert (a.estimate, a.low, *a.simultaneous, a.rest.low, a.rest.high) == pytest.approx(
                (b.estimate, b.low, *b.simultaneous, b.rest.low, b.rest.high), abs=1e-9
            )


def test_an_attribute_does_not_depend_on_another():
    """Looking at one more moves no number of the first."""
    data, grouping = by_hand()
    other = divided(np.arange(70) % 2, names=("even", "odd"))
    terms = Terms(classes=CLASSES, threshold=0.5)
    assert (
        subgroups("target", data, [grouping], terms)
        == subgroups("target", data, [other, grouping], terms)[1:]
    )


def test_few_images_or_patients_have_no_numbers():
    """One image less than enough, and enough images of too few patients."""
    sizes = (FEW_IMAGES - 1, FEW_IMAGES, FEW_IMAGES, 60)
    member = np.repeat(np.arange(4), sizes)
    patient = np.arange(len(member))
    patient[member == 1] %= FEW_PATIENTS - 1
    label, p = np.arange(len(member)) % 2, np.linspace(0.05, 0.95, len(member))
    grouping = divided(member, names=("a", "b", "c", "d"))
    (table,) = subgroups(
        "source", *_one(cohort(p, label, patient), grouping), Terms(classes=CLASSES, threshold=0.5)
    )
    a, b, c, d = table.groups
    assert a.few == f"too few: {FEW_IMAGES - 1} images, {FEW_IMAGES} needed"
    assert b.few == f"too few: {FEW_PATIENTS - 1} patients, {FEW_PATIENTS} needed"
    assert (a.metrics, a.prevalence, b.metrics) == ({}, None, {})
    assert (c.few, d.few) == (None, None)
    assert set(table.worst.values()) <= {"c", "d"}


def test_a_class_with_few_patients_has_no_sensitivity():
    """The reason names the class; what does not lean on it has numbers."""
    data, grouping = by_hand()
    label = data.labels.copy()
    label[np.flatnonzero(label[:40] == 1)[FEW_PATIENTS - 1 :]] = 0
    (table,) = subgroups(
        "target",
        *_one(cohort(data.probabilities[:, 1], label, data.groups), grouping),
        Terms(classes=CLASSES, threshold=0.5),
    )
    first, second = table.groups
    why = f"too few: {FEW_PATIENTS - 1} patients of ill, {FEW_PATIENTS} needed"
    assert dict(first.missing) == {"auroc": why, "sensitivity": why}
    assert set(first.metrics) == {"accuracy", "specificity"}
    assert set(table.worst) == {"accuracy", "specificity"}
    assert second.metrics["sensitivity"].simultaneous is None
    assert second.metrics["sensitivity"].rest is None


def test_three_classes_have_accuracy_and_macro_auroc():
    """There is no threshold to carry and no positive class."""
    rng = np.random.default_rng(2)
    label = rng.integers(0, 3, 200)
    p = rng.dirichlet(np.ones(3), 200) + 0.6 * np.eye(3)[label]
    data = Cohort(
        features=np.zeros((200, 1)),
        probabilities=p / p.sum(axis=1, keepdims=True),
        groups=np.arange(200),
        labels=label,
    )
    terms = terms_of(data, ("a", "b", "c"), 0)
    assert terms.threshold is None
    (table,) = subgroups("source", data, [divided(np.arange(200) % 2)], terms)
    for group in table.groups:
        assert set(group.metrics) == {"accuracy", "auroc"}
        assert group.prevalence is None


def test_one_group_alone_is_no_worst():
    """There must be two to pick from."""
    data, _ = by_hand()
    (table,) = subgroups(
        "target", data, [divided(np.zeros(70))], Terms(classes=CLASSES, threshold=0.5)
    )
    assert not table.worst
    assert table.groups[0].metrics["accuracy"].simultaneous is None
    assert (table.groups[1].images, table.groups[1].few[:7]) == (0, "too few")


def test_images_without_a_value_are_never_the_worst_group():
    """Nobody can be sent to look at patients of whom nothing is known; the rest are ranked."""
    label = np.tile(np.repeat([0, 1], 20), 3)
    wrong = np.concatenate([np.arange(40) % 20 < bad for bad in (2, 4, 10)])
    data = cohort(np.where(wrong, 0.8 - 0.6 * label, 0.2 + 0.6 * label), label, np.arange(120))
    member, terms = np.repeat([0, 1, 2], 40), Terms(classes=CLASSES, threshold=0.5)
    (table,) = subgroups("target", *_one(data, divided(member, ("F", "M", "unknown"))), terms)
    assert [group.metrics["accuracy"].estimate for group in table.groups] == [0.9, 0.8, 0.5]
    assert dict(table.worst) == dict.fromkeys(METRICS, "M")
    assert table.groups[1].metrics["accuracy"].rest.estimate > 0
    (table,) = subgroups("target", *_one(data, divided(member // 2, ("F", "unknown"))), terms)
    assert all(group.metrics for group in table.groups)
    assert not table.worst


def test_no_grouping_needs_no_draws():
    """Nothing is asked, nothing is done."""
    data, _ = by_hand()
    assert subgroups("target", data, [], Terms(classes=CLASSES, threshold=None)) == ()


def clustered(rng, sizes, reach, most=4):
    """Groups of patients with 1 to ``most`` images that share half of their error's variance."""
    member, label, score, patient = [], [], [], []
    for k, (size, far) in enumerate(zip(sizes, reach, strict=True)):
        made = 0
        while made < size:
            images = min(int(rng.integers(1, most + 1)), size - made)
            ill, own = rng.integers(0, 2), rng.normal()
            noise = np.sqrt(0.5) * (own + rng.normal(size=images))
            member += [k] * images
            label += [ill] * images
            score += list(noise + far * (2 * ill - 1))
            patient += [len(set(patient))] * images
            made += images
    return map(np.array, (member, label, score, patient))


def coverage(repeats, sizes, reach):
    """By metric how often intervals of all groups, and of the worst alone, hold the truth."""
    names = tuple(f"g{k}" for k in range(len(sizes)))
    rate = norm.cdf(reach)
    truth = dict.fromkeys(METRICS, rate) | {"auroc": norm.cdf(np.sqrt(2) * np.array(reach))}
    kept = {name: [] for name in METRICS}
    for seed in range(repeats):
        rng = np.random.default_rng([3, seed])
        member, label, score, patient = clustered(rng, sizes, reach)
        (table,) = subgroups(
            "target",
            cohort(expit(score), label, patient),
            [divided(member, names)],
            Terms(classes=CLASSES, threshold=0.5, seed=seed, draws=300),
        )
        for metric, found in kept.items():
            values = [group.metrics.get(metric) for group in table.groups]
            if None in values:
                continue
            holds = [
                value.simultaneous[0] <= true <= value.simultaneous[1]
                for value, true in zip(values, truth[metric], strict=True)
            ]
            gaps = rate - (np.dot(sizes, rate) - sizes * rate) / (np.sum(sizes) - sizes)
            apart = [v.rest.low <= g <= v.rest.high for v, g in zip(values, gaps, strict=True)]
            found.append((all(holds), all(apart) or (metric == "auroc" and len(set(reach)) > 1)))
    return {name: np.mean(found, axis=0) for name, found in kept.items()}


@pytest.mark.parametrize(
    ("repeats", "least"), [(60, 0.85), pytest.param(1000, 0.92, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    ("sizes", "reach"), [((160, 100, 80), (1.2, 1.2, 1.2)), ((250, 90), (1.6, 1.0))]
)
def test_intervals_of_all_groups_hold_at_once(sizes, reach, repeats, least):
    """In 95 % of clustered simulations (less the error of as many) every group is inside."""
    for metric, (values, gaps) in coverage(repeats, np.array(sizes), reach).items():
        assert values >= least, metric
        assert gaps >= least, metric
