"""The source with its head, and what is asked of a domain before it is compared."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from pipeline.data.domain import DomainData
from pipeline.data.patients import patient_folds
from pipeline.errors import StudyError
from pipeline.shift.domains import (
    digest_of,
    feature_map,
    fit_source,
    shared_patients,
    source_domain,
    too_few_patients,
)
from tests.shift.worlds import embedded


def rows(n, *, role="source", seed=0, shift=0.0):
    """Two classes apart in the first of 6 features; a feature that never varies."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) // 2 % 2
    features = rng.normal(size=(n, 6)) + 1.5 * label[:, None] * (np.arange(6) == 0) + shift
    features[:, 5] = 3.0
    return embedded(features, role=role, images=2)


def test_the_head_is_that_of_scikit_learn_on_standardised_rows():
    """For all rows, and out of fold by patient; a target is scored without its labels."""
    data = rows(120)
    model = fit_source(data)
    spread = np.where(data.features.std(0) > 0, data.features.std(0), 1)
    scaled = (data.features - data.features.mean(0)) / spread
    alone = LogisticRegression(C=0.01, tol=1e-9).fit(scaled, data.label)
    target = model.scored(data.sealed())
    assert target.label is None
    np.testing.assert_allclose(target.proba, alone.predict_proba(scaled), atol=1e-4)
    for fit, held in patient_folds(data.label, data.group, seed=0):
        assert not set(data.group[fit]) & set(data.group[held])
        fold = LogisticRegression(C=0.01, tol=1e-9).fit(scaled[fit], data.label[fit])
        expected = fold.predict_proba(scaled[held])
        np.testing.assert_allclose(model.data.proba[held], expected, atol=1e-4)
    assert model.prior == pytest.approx([0.5, 0.5])


def test_domains_of_too_few_patients_have_a_reason():
    """A class of the source by its name, a target; how many are needed, what to do."""
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
    assert too_few_patients(data) is None
    reason = too_few_patients(rows(2, role="target"))
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
        key = np.frombuffer(keys, np.uint8).reshape(-1, 1)
        return digest_of(
            DomainData(name="x", role="x", group=np.arange(3), label=np.array(label), key=key)
        )

    first = digest(b"abc", [0, 1, 1])
    assert digest(b"cba", [1, 1, 0]) == first
    assert len({first, digest(b"abc", [1, 1, 0]), digest(b"abd", [0, 1, 1])}) == 3


def test_the_map_shows_a_sample_of_both_domains():
    """At most 500 of each; a shift is its first component."""
    arrays = feature_map(fit_source(rows(1200)), rows(80, role="target", seed=1, shift=4.0))
    target, embedding = arrays["embedding_target"], arrays["embedding"]
    assert ((~target).sum(), target.sum(), embedding.shape) == (500, 80, (580, 2))
    assert abs(embedding[target, 0].mean() - embedding[~target, 0].mean()) > 2
    assert set(arrays["embedding_label"]) == {0, 1}
