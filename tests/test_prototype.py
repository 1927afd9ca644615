"""Prototype: class means of unit rows, and cosines with the own patient taken out."""

import numpy as np
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import normalize

from pipeline.heads.prototype import PrototypeHead, _held_out_cosines


def problem(n=90, d=7, classes=3):
    rng = np.random.default_rng(0)
    y = rng.integers(0, classes, n)
    return (rng.normal(size=(n, d)) + np.eye(classes, d)[y]).astype(np.float32), y


def test_means_are_those_of_scikit_learns_nearest_centroid_on_unit_rows():
    """And the class is the one whose mean has the highest cosine."""
    X, y = problem()
    ours = PrototypeHead().fit(X, y)
    theirs = NearestCentroid().fit(normalize(X.astype(np.float64)), y)
    np.testing.assert_allclose(ours.means_, theirs.centroids_, atol=1e-9)
    cosines = cosine_similarity(X.astype(np.float64), theirs.centroids_)
    np.testing.assert_allclose(ours.cosines(X), cosines, atol=1e-9)
    np.testing.assert_array_equal(ours.predict(X), cosines.argmax(1))


def test_held_out_cosines_are_those_of_a_refit_without_the_patient():
    """A patient's rows move no mean that they are compared with."""
    X, y = problem()
    group = np.random.default_rng(1).integers(0, 40, len(X))
    unit = normalize(X.astype(np.float64))
    share = np.eye(3)[y] / np.linalg.norm(X.astype(np.float64), axis=1)[:, None]
    sums = X.astype(np.float64).T @ share
    found = _held_out_cosines(X, share, sums.T, group)
    for one in np.unique(group):
        out = group == one
        means = [unit[~out & (y == k)].mean(0) for k in range(3)]
        np.testing.assert_allclose(found[out], cosine_similarity(unit[out], means), atol=1e-9)


def test_a_class_of_one_patient_leaves_no_mean_to_compare_with():
    """Those rows do not count for the temperature."""
    X, y = problem(classes=2)
    group = np.where(y == 0, "only", np.arange(len(y)).astype(str))
    share = np.eye(2)[y]
    found = _held_out_cosines(X, share, (X.T.astype(float) @ share).T, group_numbers(group))
    assert np.isnan(found[y == 0][:, 0]).all()
    assert np.isfinite(found[y == 1]).all()


def group_numbers(group):
    return np.unique(group, return_inverse=True)[1]
