"""Every head keeps the same contract; the table is what the tests run over."""

import numpy as np
import pytest
from sklearn.base import clone

from pipeline.heads import HEADS
from tests.heads.made_up_rows import made_up_rows


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", HEADS)
def test_a_head_keeps_scikit_learns_contract(name, classes):
    """Probabilities (n, K) row by row, the same for the same seed; separated classes are learnt.

    The input is not touched, classes keep their names, another width is refused, and patients
    are taken, as text, where ``groups`` is true.
    """
    rows, spec = made_up_rows(classes), HEADS[name]
    X, y, more = rows.features, np.array(["a", "b", "c"])[rows.label], {}
    if spec.groups:
        more = {"groups": rows.group}
    before, head = X.copy(), spec.make(3).fit(X, y, **more)
    p = head.predict_proba(X)
    np.testing.assert_array_equal(X, before)
    assert p.shape == (len(X), classes)
    assert (p >= 0).all()
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-6)
    assert list(head.classes_) == sorted(set(y))
    np.testing.assert_array_equal(head.classes_[p.argmax(1)], head.predict(X))
    np.testing.assert_allclose(head.predict_proba(X[::-1].copy())[::-1], p, atol=1e-6)
    np.testing.assert_array_equal(clone(head).fit(X, y, **more).predict_proba(X), p)
    if name != "prior":
        assert (head.predict(X) == y).mean() > 0.9
        with pytest.raises(ValueError, match="features"):
            head.predict_proba(X[:, :5])


@pytest.mark.parametrize("name", HEADS)
def test_the_table_says_what_is_true(name):
    """A stochastic head moves with its seed, no other; the grid names real parameters."""
    rows, spec = made_up_rows(n=60, gap=1.0), HEADS[name]
    X, y = rows.features, rows.label
    p = [spec.make(seed).fit(X[:40], y[:40]).predict_proba(X) for seed in (0, 1)]
    assert (p[0] != p[1]).any() == spec.stochastic
    assert set(spec.grid) <= set(spec.make(0).get_params())


@pytest.mark.parametrize("name", ["mlp", "ridge", "lda", "prototype"])
def test_one_class_cannot_be_learnt(name):
    """The message says which one was got."""
    with pytest.raises(ValueError, match=r"one class only \(1\)"):
        HEADS[name].make(0).fit(np.eye(4, dtype=np.float32), np.ones(4, int))


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("ridge", {"penalties": (1.0, 0.0)}),
        ("lda", {"shrinkage": "none"}),
        ("lda", {"shrinkage": 1.5}),
        ("mlp", {"depth": 0}),
        ("mlp", {"hidden": 0}),
        ("mlp", {"dropout": 1.0}),
    ],
)
def test_a_setting_that_is_not_allowed_is_refused(name, setting):
    """What is allowed is in the message."""
    with pytest.raises(ValueError, match="allowed are"):
        HEADS[name].make(0).set_params(**setting).fit(np.eye(4), [0, 1, 0, 1])
