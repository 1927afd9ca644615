"""The source with its head, and what is asked of a domain before it is compared."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from pipeline.data.domain import DomainData
from pipeline.data.patients import patient_folds
from pipeline.errors import StudyError
from pipeline.shift.domains import (
    digest_of_domain,
    feature_map,
    fit_source,
    shared_patients,
    source_domain,
    too_few_patients,
)


def rows(n, *, role="source", images=2, seed=0, shift=0.0):
    """Two classes apart in the first of 6 features; a feature that never varies."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) // images % 2
    features = rng.normal(size=(n, 6)) + 1.5 * label[:, None] * (np.arange(6) == 0) + shift
    features[:, 5] = 3.0
    return DomainData(
        name=role, role=role, group=np.arange(n) // images, label=label, features=features
    )


def test_the_head_is_that_of_scikit_learn_on_standardised_rows():
    """For all rows, and out of fold by patient."""
    data = rows(120)
    model = fit_source(data)
    scaled = (data.features - data.features.mean(0)) / np.where(
        data.features.std(0) > 0, data.features.std(0), 1
    )
    alone = LogisticRegression(C=0.01, tol=1e-9).fit(scaled, data.label)
    np.testing.assert_allclose(
        model.predict_proba(data.features), alone.predict_proba(scaled), atol=1e-4
    )
    for fit, held in patient_folds(data.label, data.group, seed=0):
        assert not set(data.group[fit]) & set(data.group[held])
        fold = LogisticRegression(C=0.01, tol=1e-9).fit(scaled[fit], data.label[fit])
        np.testing.assert_allclose(
            model.data.proba[held], fold.predict_proba(scaled[held]), atol=1e-4
        )
    assert model.prior == pytest.approx([0.5, 0.5])


def test_a_target_is_scored_without_its_labels():
    """The head sees features; a sealed domain stays sealed."""
    model = fit_source(rows(120))
    target = rows(40, role="target", seed=1).sealed()
    found = model.scored(target)
    assert found.label is None
    np.testing.assert_array_equal(found.proba, model.predict_proba(target.features))


def test_labels_that_skip_a_class_are_refused():
    """A head of two outputs would be asked for three."""
    data = rows(40)
    with pytest.raises(StudyError, match=r"every number from 0 to K - 1.*\[20, 0, 20\]"):
        fit_source(data.with_(label=2 * data.label))


def test_a_class_of_one_patient_is_named_before_any_fit():
    """The class by its name, its patients, how many are needed, what to do."""
    data = rows(40)

    def table(source):
        samples = SimpleNamespace(classes=("a", "b"))
        return SimpleNamespace(domain=lambda _: source, samples=samples)

    few = data.take((data.label == 0) | (data.group == 1))
    with pytest.raises(
        StudyError,
        match=r"class 'b' of \[source\] has images of 1 patient, and 2 are needed: .* Add images",
    ):
        source_domain(table(few))
    assert source_domain(table(data)) is data


def test_a_target_of_one_patient_has_a_reason():
    """How many images, whose, how many patients are needed, what to do."""
    data = rows(40, role="target")
    assert too_few_patients(data) is None
    reason = too_few_patients(data.take(data.group == 0))
    assert reason.startswith("Images: 2, all of one patient; a comparison by patient needs two")
    assert "[target.target]" in reason


def test_the_name_of_a_file_is_no_shared_patient():
    """Where no pattern gives the patients, two hospitals that number alike share nobody."""
    samples = SimpleNamespace(items=[SimpleNamespace(path="ill/img_0.png")])
    source, target = (
        DomainData(name="x", role="x", group=np.array(group))
        for group in (["ill/img_0.png", "p1"], ["ill/img_0.png", "p1", "p2"])
    )
    assert shared_patients(samples, source, target) == 1


def test_the_digest_is_of_images_with_labels_in_any_order():
    """Another order is the same input; another label or image is another."""

    def digest(keys, label):
        domain = np.repeat("far", len(keys))
        return digest_of_domain(SimpleNamespace(domain=domain, key=keys, label=label), "far")

    keys, label = [b"a", b"b", b"c"], np.array([0, 1, 1])
    first = digest(keys, label)
    assert digest(keys[::-1], label[::-1]) == first
    assert digest(keys, label[::-1]) != first
    assert digest([b"a", b"b", b"d"], label) != first


def test_the_map_shows_a_sample_of_both_domains():
    """At most 500 of each; a shift is its first component."""
    model = fit_source(rows(1200))
    found = feature_map(model, rows(80, role="target", seed=1, shift=4.0))
    target = found["embedding_target"]
    assert (~target).sum() == 500
    assert target.sum() == 80
    assert found["embedding"].shape == (580, 2)
    apart = found["embedding"][target, 0].mean() - found["embedding"][~target, 0].mean()
    assert abs(apart) > 2
    assert set(found["embedding_label"]) == {0, 1}
