"""Leaks are found where they were planted; clean data stay clean."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, shift

from pipeline.data.domain import DomainData
from pipeline.data.leaks import (
    Gallery,
    NearDuplicateRule,
    hamming,
    label_conflicts,
    near_duplicates,
    shared_ids,
)
from pipeline.errors import StudyError
from pipeline.shift.detect import run_tests

SIZE = 96


def pictures(rng, n):
    """Draw smooth random images of independent patients, shape (n, 96, 96)."""
    noise = rng.normal(size=(n, SIZE, SIZE))
    return np.stack([gaussian_filter(image, 12) for image in noise])


def looks(images):
    """Reduce images to a coarse grid of 12 x 12 means, much as pooled features do."""
    return images.reshape(len(images), 12, 8, 12, 8).mean(axis=(2, 4)).reshape(len(images), -1)


def difference_hash(images):
    """Return the 64-bit dHash: is each of 8 x 8 cells brighter than its left neighbour?"""
    columns = np.linspace(0, SIZE, 10).astype(int)
    rows = np.linspace(0, SIZE, 9).astype(int)
    cells = np.stack(
        [
            [
                image[rows[i] : rows[i + 1], columns[j] : columns[j + 1]].mean()
                for i in range(8)
                for j in range(9)
            ]
            for image in images
        ]
    ).reshape(-1, 8, 9)
    bits = np.diff(cells, axis=2) > 0
    return np.packbits(bits.reshape(len(images), 64), axis=1).view(np.uint64).ravel()


def gallery_of(images, n_fit):
    """Give each image its own patient; the first are for fitting, the rest are target."""
    return Gallery(
        features=looks(images),
        hashes=difference_hash(images),
        roles=np.where(np.arange(len(images)) < n_fit, "fit", "target"),
        groups=np.arange(len(images)),
    )


def test_planted_copies_are_found_and_independent_images_are_not():
    """E-T1: a pixel copy and a copy shifted by one pixel, across roles; nothing else."""
    rng = np.random.default_rng(0)
    images = pictures(rng, 400)
    clean = near_duplicates(gallery_of(images, 300))
    assert clean == ()
    images[310] = images[17]
    images[320] = shift(images[42], (0, 1), mode="nearest")
    found = near_duplicates(gallery_of(images, 300))
    assert [pair.rows for pair in found] == [(17, 310), (42, 320)]
    assert found[0].cosine == pytest.approx(1)
    assert found[0].bits == 0
    assert 0 <= found[1].bits <= 4


def test_copies_inside_one_role_are_not_across_roles():
    """Two views of one patient in one role are no leak, nor do they hide one."""
    images = pictures(np.random.default_rng(1), 300)
    images[5] = images[4]
    images[250] = images[9]
    gallery = gallery_of(images, 200)
    gallery.groups[5] = 4
    assert [pair.rows for pair in near_duplicates(gallery)] == [(9, 250)]


def test_copies_under_two_patients_of_one_role_set_no_threshold():
    """What the hash takes for a copy is not chance: a moved copy across roles is still found."""
    images = pictures(np.random.default_rng(1), 300)
    images[20:26] = images[30:36]
    images[250] = shift(images[9], (0, 1), mode="nearest")
    assert (9, 250) in [pair.rows for pair in near_duplicates(gallery_of(images, 200))]


def test_alike_in_features_alone_is_no_copy():
    """Both signs must agree: the same features with another hash are not a duplicate."""
    images = pictures(np.random.default_rng(2), 300)
    images[250] = images[9]
    gallery = gallery_of(images, 200)
    gallery.hashes[250] ^= np.uint64(0b11111)
    assert near_duplicates(gallery) == ()
    assert len(near_duplicates(gallery, NearDuplicateRule(bits=5))) == 1


def test_hamming_counts_bits():
    """From no bit to all 64."""
    a = np.array([0, 0, 5], dtype=np.uint64)
    b = np.array([0, 2**64 - 1, 6], dtype=np.uint64)
    assert hamming(a, b).tolist() == [0, 64, 2]


def test_galleries_refuse_what_they_cannot_compare():
    """Ragged arrays and hashes that are not 64 bits are named."""
    arrays = {"features": np.zeros((2, 3)), "roles": np.array(["a", "b"]), "groups": np.arange(2)}
    with pytest.raises(StudyError, match="needed uint64"):
        Gallery(**arrays, hashes=np.zeros(2, dtype=np.int64))
    with pytest.raises(StudyError, match="'hashes': 3"):
        Gallery(**arrays, hashes=np.zeros(3, dtype=np.uint64))


def test_patients_and_pictures_in_two_roles_are_listed():
    """E-T1: the overlap of each pair of roles, by id; roles without one are silent."""
    found = shared_ids(
        {
            "fit": np.array(["p1", "p2", "p3", "p2"]),
            "validation": np.array(["p4", "p2"]),
            "target": np.array(["p5", "p3", "p1"]),
        }
    )
    assert [(shared.roles, shared.ids) for shared in found] == [
        (("fit", "validation"), ("p2",)),
        (("fit", "target"), ("p1", "p3")),
    ]


def test_one_picture_under_two_labels_is_a_conflict():
    """Copies that agree are not listed, copies that differ are, with their rows."""
    keys = np.array(["x", "y", "x", "z", "y", "x"])
    (conflict,) = label_conflicts(keys, np.array([0, 1, 0, 0, 1, 1]))
    assert (conflict.key, conflict.labels, conflict.rows) == ("x", (0, 1), (0, 2, 5))


def test_a_leaky_split_is_found_by_the_leak_checks_and_not_by_the_tests():
    """B-T8: duplicated patients make two roles look alike; only their ids and copies tell."""
    rng = np.random.default_rng(3)
    images = pictures(rng, 160)
    images[100:140] = images[:40]
    patients = np.r_[np.arange(100), np.arange(40), np.arange(100, 120)]
    features = looks(images)
    positive = 1 / (1 + np.exp(-30 * features[:, 0]))
    probabilities = np.stack([1 - positive, positive], axis=1)
    fit, held = (
        DomainData(
            name=name, role=name, features=features[r], proba=probabilities[r], group=patients[r]
        )
        for name, r in (("fit", slice(100)), ("held", slice(100, 160)))
    )
    for row in run_tests(fit, held, draws=99):
        assert row.p > 0.05, row.test
    (overlap,) = shared_ids({"fit": fit.group, "held": held.group})
    assert overlap.ids == tuple(range(40))
    assert len(near_duplicates(gallery_of(images, 100))) == 40
