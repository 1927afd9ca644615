"""Every head keeps the same contract; the table is what the tests run over."""

import numpy as np
import pytest
from sklearn.base import clone

from pipeline.errors import UnknownNameError
from pipeline.heads import HEADS, make_head
from tests.heads.made_up_rows import made_up_rows


@pytest.fixture(params=[2, 3], ids=["two classes", "three classes"])
def data(request):
    rows = made_up_rows(request.param)
    return rows.features, rows.label


@pytest.mark.parametrize("name", HEADS)
def test_probabilities_are_probabilities(name, data):
    """Shape (n, K), not negative, sum 1, and the best class is what predict says."""
    X, y = data
    head = make_head(name, seed=0).fit(X, y)
    p = head.predict_proba(X)
    assert p.shape == (len(X), len(set(y)))
    assert (p >= 0).all()
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(head.classes_[p.argmax(1)], head.predict(X))


@pytest.mark.parametrize("name", [n for n in HEADS if n != "prior"])
def test_a_head_learns_what_can_be_learnt(name, data):
    """Well separated classes are told apart; the majority class alone would not do."""
    X, y = data
    assert make_head(name, seed=0).fit(X, y).score(X, y) > 0.9


@pytest.mark.parametrize("name", HEADS)
def test_the_same_seed_gives_the_same_head(name, data):
    """Bit for bit, also after clone; classes keep their names."""
    X, y = data
    names = np.array(["a", "b", "c"])[y]
    first = make_head(name, seed=3)
    one = first.fit(X, names).predict_proba(X)
    two = clone(first).fit(X, names).predict_proba(X)
    np.testing.assert_array_equal(one, two)
    assert list(first.classes_) == sorted(set(names))


@pytest.mark.parametrize("name", HEADS)
def test_rows_keep_their_order_and_the_input_is_not_touched(name):
    """Float32 in, answered row by row whatever stands beside them."""
    rows = made_up_rows()
    X, before = rows.features, rows.features.copy()
    head = make_head(name, seed=0).fit(X, rows.label)
    p = head.predict_proba(X)
    np.testing.assert_array_equal(X, before)
    np.testing.assert_allclose(head.predict_proba(X[::-1].copy())[::-1], p, atol=1e-6)


@pytest.mark.parametrize("name", [n for n, spec in HEADS.items() if spec.groups])
def test_a_head_that_holds_rows_out_takes_the_patients(name):
    """``groups`` is true, and patients are accepted as text."""
    rows = made_up_rows()
    head = make_head(name, seed=0).fit(rows.features, rows.label, groups=rows.group)
    assert head.score(rows.features, rows.label) > 0.9


@pytest.mark.parametrize("name", [n for n, spec in HEADS.items() if spec.stochastic])
def test_another_seed_gives_another_head(name):
    """``stochastic`` is true."""
    rows = made_up_rows(n=60, gap=1.0)
    X, y = rows.features, rows.label
    p = [make_head(name, seed=s).fit(X[:40], y[:40]).predict_proba(X) for s in (0, 1)]
    assert (p[0] != p[1]).any()


@pytest.mark.parametrize("name", [n for n in HEADS if n != "prior"])
def test_features_of_another_width_are_refused(name):
    """Never broadcast, never guessed."""
    rows = made_up_rows()
    head = make_head(name, seed=0).fit(rows.features, rows.label)
    with pytest.raises(ValueError, match="features"):
        head.predict_proba(rows.features[:, :5])


@pytest.mark.parametrize("name", HEADS)
def test_the_grid_names_real_parameters(name):
    """A misspelt grid would choose between equal heads."""
    assert set(HEADS[name].grid) <= set(make_head(name, seed=0).get_params())


@pytest.mark.parametrize("name", ["mlp", "ridge", "lda", "prototype"])
def test_one_class_cannot_be_learnt(name):
    """The message says which one was got."""
    with pytest.raises(ValueError, match=r"one class only \(1\)"):
        make_head(name, seed=0).fit(np.eye(4, dtype=np.float32), np.ones(4, int))


def test_an_unknown_head_lists_the_table():
    """The message is built from HEADS."""
    with pytest.raises(
        UnknownNameError, match="unknown head 'lstm'; known: mlp, linear, ridge, lda"
    ):
        make_head("lstm", seed=0)
