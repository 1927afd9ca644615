"""Images that are probably labelled wrongly are listed; rightly labelled ones are not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.audit.label_noise import confident_class, label_checks
from pipeline.data.items import Item
from pipeline.data.leaks import NOTE, OK
from pipeline.data.samples import Samples

#: sd between the means of two classes. CLOUDS do not touch, but images differ in how sure a
#: head is of them; of POINTS they hardly do.
CLOUDS, POINTS = 8.0, 100.0


def table(labels, *, domain="source"):
    """Samples of one image for each patient, without files."""
    n = len(labels)
    return Samples(
        items=tuple(Item(f"p{i:03}.png", "x", Path("no.png"), None, (0, 0)) for i in range(n)),
        key=tuple(bytes(32) for _ in range(n)),
        label=np.asarray(labels, np.int64),
        group=np.array([f"p{i}" for i in range(n)]),
        domain=np.full(n, domain),
        split=np.full(n, "fit"),
        classes=("healthy", "ill", "very ill"),
    )


def check_labels(samples, features):
    """The findings of all domains."""
    return [check() for check in label_checks(samples, features)]


def world(classes, n=240, distance=POINTS):
    """Features of classes that lie apart, and their true labels."""
    rng = np.random.default_rng(classes)
    truth = rng.permutation(np.arange(n) % classes)
    return rng.normal(size=(n, classes)) + distance * np.eye(classes)[truth], truth


def confident_joint(labels, proba):
    """The definition, image by image: Northcutt, Jiang and Chuang 2021, section 3.1."""
    n, classes = proba.shape
    thresholds = [
        sum(proba[i, k] for i in range(n) if labels[i] == k) / sum(labels == k)
        for k in range(classes)
    ]
    joint = np.zeros((classes, classes), int)
    for i in range(n):
        able = [k for k in range(classes) if proba[i, k] >= thresholds[k]]
        if able:
            joint[labels[i], max(able, key=lambda k: proba[i, k])] += 1
    return joint


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_confident_joint_is_that_of_its_definition(classes):
    """Given label by sure class, counted, is the loop over the paper's formula."""
    rng = np.random.default_rng(1)
    labels = rng.permutation(np.arange(300) % classes)
    proba = rng.dirichlet(np.ones(classes), 300) + 0.3 * np.eye(classes)[labels]
    proba /= proba.sum(axis=1, keepdims=True)
    sure = confident_class(labels, proba)
    joint = confident_joint(labels, proba)
    assert joint.sum() == (sure >= 0).sum() > 0
    for given in range(classes):
        for k in range(classes):
            assert joint[given, k] == ((labels == given) & (sure == k)).sum()


def test_no_class_is_sure_that_no_image_has():
    """Its threshold would be the mean of nothing."""
    proba = np.array([[0.6, 0.1, 0.3], [0.3, 0.6, 0.1], [0.1, 0.1, 0.8]])
    assert confident_class(np.array([0, 1, 1]), proba).tolist() == [0, 1, -1]


@pytest.mark.parametrize(("distance", "least"), [(POINTS, 11), (CLOUDS, 7)])
@pytest.mark.parametrize("classes", [2, 3])
def test_flipped_labels_are_listed_and_no_other(classes, distance, least):
    """Of twelve, nearly all where heads are sure, most elsewhere; with what they seem to be."""
    features, truth = world(classes, distance=distance)
    given = truth.copy()
    given[:12] = (given[:12] + 1) % classes
    (found,) = check_labels(table(given), features)
    names = table(given).classes
    flipped = {(f"source/p{i:03}.png", names[given[i]], names[truth[i]]) for i in range(12)}
    images = found.values["images"]
    assert {(image["path"], image["label"], image["seems"]) for image in images} <= flipped
    assert least <= len(images) == sum(found.values["counts"].values())
    assert found.severity == NOTE
    assert f"{len(images)} of 240 images are probably labelled wrongly" in found.text
    assert found.text.endswith("expected share of false alarms 0%")
    assert found.examples.endswith(f"and {len(images) - 3} more")
    certain = [image["probability"] for image in images]
    assert certain[0] >= certain[-1]


@pytest.mark.parametrize("distance", [POINTS, CLOUDS])
@pytest.mark.parametrize("classes", [2, 3])
def test_classes_that_lie_apart_have_no_doubtful_label(classes, distance):
    """Without noise nothing is listed."""
    features, truth = world(classes, distance=distance)
    (found,) = check_labels(table(truth), features)
    assert found.severity == OK
    assert "none of 240 images" in found.text


def test_features_that_know_nothing_accuse_nobody():
    """Half of all labels would look wrong; the check says that it cannot be tested."""
    features, truth = world(2, distance=0)
    (found,) = check_labels(table(truth), features)
    assert found.severity == NOTE
    assert found.text.startswith(
        "cannot be tested: the features do not predict the label better than"
    )
    assert not found.values


def test_each_domain_is_judged_by_its_own_patients():
    """A class that a domain lacks is no mistake of its labels; a domain of one cannot be tested."""
    features, truth = world(3, n=270)
    samples = table(truth)
    domain = np.where(np.arange(270) < 150, "source", np.where(truth == 1, "one", "two"))
    found = {f.where: f for f in check_labels(replace(samples, domain=domain), features)}
    assert {name: f.severity for name, f in found.items()} == {
        "source": OK,
        "one": NOTE,
        "two": OK,
    }
    assert "two classes" in found["one"].text


def test_a_patient_does_not_vouch_for_their_own_images():
    """Copies of a wrongly labelled picture under the same patient do not hide it."""
    features, truth = world(2, n=100)
    given = truth.copy()
    given[0] = 1 - given[0]
    rows = np.r_[np.zeros(9, int), np.arange(100)]
    samples = replace(table(given[rows]), group=np.array([f"p{row}" for row in rows]))
    (found,) = check_labels(samples, features[rows])
    assert len(found.values["images"]) == 10


@pytest.mark.parametrize("seed", range(8))
def test_two_ill_patients_are_judged_in_whatever_order_they_come(seed):
    """Each is in a fold of their own: a head that saw none of them could judge nobody."""
    truth = np.random.default_rng(seed).permutation(np.arange(40) < 2).astype(int)
    features = np.random.default_rng(seed).normal(size=(40, 2)) + POINTS * np.eye(2)[truth]
    (found,) = check_labels(table(truth), features)
    # Where both are in one fold of the ridge, it finds nothing to predict.
    assert found.severity == OK or "better than chance" in found.text


@pytest.mark.parametrize(("distance", "least", "most"), [(1.0, 60, 200), (2.0, 0, 12)])
def test_expected_false_alarms_are_those_of_classes_that_overlap(distance, least, most):
    """No label is wrong: what is listed is expected to be false, over six samples together."""
    listed = expected = 0.0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        truth = rng.permutation(np.arange(300) % 2)
        features = rng.normal(size=(300, 20))
        features[:, :2] += distance * np.eye(2)[truth]
        (found,) = check_labels(table(truth), features)
        listed += len(found.values.get("images", ()))
        expected += found.values.get("expected_false", 0.0)
    assert least <= listed <= most
    assert expected == pytest.approx(listed, rel=0.2, abs=10)
