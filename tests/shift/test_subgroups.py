"""Subgroups: by hand, whatever the order of rows, and by how often their intervals hold."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm

from pipeline.data.attributes import Grouping
from pipeline.evaluation.intervals import wilson
from pipeline.shift.subgroups import FEW_IMAGES, FEW_PATIENTS, subgroups
from tests.made_up import scored

METRICS = ("accuracy", "auroc", "sensitivity", "specificity")


def divided(member, names=("F", "M")):
    return Grouping(attribute="sex", names=names, member=np.asarray(member, np.int64))


def of(data, *groupings, source=None, source_groupings=(), **rest):
    """Subgroups at a threshold of one half."""
    source = data if source is None else source
    options = {"threshold": 0.5} | rest
    return subgroups(source, data, (source_groupings, groupings), **options)


def worst(groups):
    return {
        name: group["group"]
        for group in groups
        for name, value in group["metrics"].items()
        if value["worst"]
    }


def by_hand():
    """F: 40 images, M: 30, an image a patient; wrong are 2 ill and 1 well of F, 9 ill of M."""
    p = np.concatenate(
        [np.repeat([0.9, 0.3, 0.1, 0.8], [18, 2, 19, 1]), np.repeat([0.7, 0.2, 0.1], [6, 9, 15])]
    )
    label = np.repeat([1, 0, 1, 0], [20, 20, 15, 15])
    return scored(p, label, role="target"), divided(np.repeat([0, 1], [40, 30]))


def test_a_case_counted_by_hand():
    """Counts, shares, the worst, and its distance from the rest."""
    first, second = of(*by_hand())
    assert (first["group"], first["images"], first["patients"], first["reason"]) == (
        "F", 40, 40, None
    )  # fmt: skip
    for name, hits, n in (("accuracy", 37, 40), ("sensitivity", 18, 20), ("specificity", 19, 20)):
        value = first["metrics"][name]
        assert value["estimate"] == pytest.approx(hits / n)
        low, high = wilson(hits, n)  # of this group alone: those of all at once are wider
        assert value["low"] < low < high < value["high"]
    # Of 20 x 20 pairs: 18 ill above all, 2 at 0.3 above 19 and below the one at 0.8.
    assert first["metrics"]["auroc"]["estimate"] == pytest.approx((18 * 20 + 2 * 19) / 400)
    assert second["metrics"]["sensitivity"]["estimate"] == 6 / 15
    assert worst((first, second)) == {
        "accuracy": "M", "auroc": "F", "sensitivity": "M", "specificity": "F"
    }  # fmt: skip
    value, mirrored = (group["metrics"]["sensitivity"] for group in (second, first))
    assert value["difference"] == pytest.approx(6 / 15 - 18 / 20)
    assert value["difference_low"] < value["difference"] < value["difference_high"] < 0
    assert (-mirrored["difference_high"], -mirrored["difference_low"]) == pytest.approx(
        (value["difference_low"], value["difference_high"]), abs=1e-9
    )


@pytest.mark.parametrize(
    ("change", "values"),
    [
        ({}, (1.0, 1.0)),
        ({"member": np.repeat([0, 1], [60, 10])}, (1.0, None)),
        ({"attribute": "view"}, (None, None)),
    ],
)
def test_the_same_group_of_the_source_stands_beside(change, values):
    """Its value, where the source has the attribute and images enough."""
    data, grouping = by_hand()
    right = scored(np.where(data.label, 0.9, 0.1), data.label)
    groups = of(data, grouping, source=right, source_groupings=[replace(grouping, **change)])
    assert tuple(group["metrics"]["accuracy"]["source"] for group in groups) == values


def test_few_images_or_patients_have_no_numbers():
    """One image less than enough, and enough images of too few patients."""
    member = np.repeat(np.arange(4), (FEW_IMAGES - 1, FEW_IMAGES, FEW_IMAGES, 60))
    patient = np.arange(len(member))
    patient[member == 1] %= FEW_PATIENTS - 1
    label, p = np.arange(len(member)) % 2, np.linspace(0.05, 0.95, len(member))
    groups = of(scored(p, label, group=patient), divided(member, names=("a", "b", "c", "d")))
    a, b, c, d = groups
    assert a["reason"] == f"too few: {FEW_IMAGES - 1} images, {FEW_IMAGES} needed"
    assert b["reason"] == f"too few: {FEW_PATIENTS - 1} patients, {FEW_PATIENTS} needed"
    assert a["metrics"] == b["metrics"] == {}
    assert (c["reason"], d["reason"]) == (None, None)
    assert set(worst(groups).values()) <= {"c", "d"}


def test_a_class_with_few_patients_has_no_sensitivity():
    """What does not need it has numbers."""
    data, grouping = by_hand()
    label = data.label.copy()
    label[np.flatnonzero(label[:40] == 1)[FEW_PATIENTS - 1 :]] = 0
    groups = of(data.with_(label=label), grouping)
    assert set(groups[0]["metrics"]) == {"accuracy", "specificity"}
    assert set(worst(groups)) == {"accuracy", "specificity"}
    assert groups[1]["metrics"]["sensitivity"]["difference"] is None


def test_images_without_a_value_are_never_the_worst_group():
    """Nobody can be sent to look at patients of whom nothing is known; the rest are ranked."""
    label = np.tile(np.repeat([0, 1], 20), 3)
    wrong = np.concatenate([np.arange(40) % 20 < bad for bad in (2, 4, 10)])
    data = scored(np.where(wrong, 0.8 - 0.6 * label, 0.2 + 0.6 * label), label)
    member = np.repeat([0, 1, 2], 40)
    groups = of(data, divided(member, ("F", "M", "unknown")))
    assert [group["metrics"]["accuracy"]["estimate"] for group in groups] == [0.9, 0.8, 0.5]
    assert worst(groups) == dict.fromkeys(METRICS, "M")
    assert not worst(of(data, divided(member // 2, ("F", "unknown"))))


def clustered(rng, sizes, reach):
    """Groups of patients with 1 to 4 images that share half of their error's variance."""
    member, ill = np.repeat(np.arange(len(sizes)), sizes), rng.integers(0, 2, np.sum(sizes))
    patient = np.repeat(np.arange(member.size), rng.integers(1, 5, member.size))
    noise = rng.normal(size=member.size)[patient] + rng.normal(size=patient.size)
    member, label = member[patient], ill[patient]
    score = np.sqrt(0.5) * noise + np.array(reach)[member] * (2 * label - 1)
    return scored(expit(score), label, group=patient, role="target"), member


def coverage(repeats, sizes, reach):
    """By metric how often the intervals of all groups, and of all differences, hold the truth."""
    names = tuple(f"g{k}" for k in range(len(sizes)))
    rate = norm.cdf(reach)
    truth = dict.fromkeys(METRICS, rate) | {"auroc": norm.cdf(np.sqrt(2) * np.array(reach))}
    gaps = rate - (np.dot(sizes, rate) - sizes * rate) / (np.sum(sizes) - sizes)
    held = {name: [] for name in METRICS}
    for seed in range(repeats):
        data, member = clustered(np.random.default_rng([3, seed]), sizes, reach)
        groups = of(data, divided(member, names), seed=seed)
        for metric, kept in held.items():
            values = [group["metrics"][metric] for group in groups]
            inside = all(
                v["low"] <= t <= v["high"] for v, t in zip(values, truth[metric], strict=True)
            )
            apart = all(
                v["difference_low"] <= gap <= v["difference_high"]
                for v, gap in zip(values, gaps, strict=True)
            )
            kept.append((inside, apart or (metric == "auroc" and len(set(reach)) > 1)))
    return {name: np.mean(kept, axis=0) for name, kept in held.items()}


@pytest.mark.parametrize(
    ("repeats", "least"), [(20, 0.85), pytest.param(1000, 0.92, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    ("sizes", "reach"), [((64, 50, 48), (1.2, 1.2, 1.2)), ((100, 48), (1.6, 1.0))]
)
def test_intervals_of_all_groups_hold_at_once(sizes, reach, repeats, least):
    """In 95 % of clustered simulations (less the error of as many) every group is inside."""
    for metric, shares in coverage(repeats, np.array(sizes), reach).items():
        assert min(shares) >= least, metric
