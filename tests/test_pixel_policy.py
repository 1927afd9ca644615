"""The declaration of everything that changes pixels, as the recipe keeps it."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.images import INTERPOLATIONS, MASKS, RESIZES, PixelPolicy
from pipeline.errors import StudyError, UnknownNameError

CROP = PixelPolicy(resize="crop")

POLICIES = st.builds(
    PixelPolicy,
    size=st.sampled_from([32, 224]),
    resize=st.sampled_from(sorted(RESIZES)),
    crop_ratio=st.sampled_from([0.875, 0.9, 1.0]),
    interpolation=st.sampled_from(sorted(INTERPOLATIONS)),
    mean=st.sampled_from([(0.485, 0.456, 0.406), (0.5, 0.5, 0.5)]),
    std=st.sampled_from([(0.229, 0.224, 0.225), (1.0, 1.0, 1.0), (1, 1, 1)]),
    mask=st.sampled_from(sorted(MASKS)),
)


@given(POLICIES, POLICIES)
def test_policies_are_equal_exactly_when_their_declarations_are(one, other):
    """The declaration goes into the fingerprint of the features, as JSON text."""
    declared = [json.dumps(policy.to_json(), sort_keys=True) for policy in (one, other)]
    assert (one == other) == (declared[0] == declared[1])
    assert one != other or hash(one) == hash(other)
    assert json.loads(declared[0]) == one.to_json()


@pytest.mark.parametrize(
    "changed",
    [
        {"size": 192},
        {"resize": "crop"},
        {"interpolation": "bicubic"},
        {"mean": (0.5, 0.5, 0.5)},
        {"std": (0.5, 0.5, 0.5)},
        {"mask": "centre"},
        {"mask": "corners"},
    ],
    ids=lambda changed: "-".join(map(str, next(iter(changed.items())))),
)
def test_each_field_changes_the_declaration(changed):
    """No field that moves a pixel can be forgotten."""
    assert PixelPolicy(**changed).to_json() != PixelPolicy().to_json()


def test_the_crop_ratio_counts_only_where_it_is_used():
    """Two stretches with other crop ratios make the same pixels, so they share features."""
    assert PixelPolicy(crop_ratio=0.9) == PixelPolicy()
    assert "crop_ratio" not in PixelPolicy().to_json()
    assert replace(CROP, crop_ratio=0.9) != CROP


def test_the_declaration_names_every_decision():
    """Size to colour profile: what is not declared cannot be compared later."""
    assert CROP.to_json().keys() == {
        *("size", "resize", "crop_ratio", "interpolation", "antialias", "mean", "std"),
        *("colour", "palette", "alpha", "cmyk", "bit_depth", "exif", "icc"),
    }


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"resize": "zoom"}, UnknownNameError, "unknown resize 'zoom'; known: stretch, crop"),
        ({"interpolation": "nearest"}, UnknownNameError, "known: bilinear, bicubic"),
        ({"mask": "left"}, UnknownNameError, "unknown mask 'left'; known: none, centre, corners"),
        ({"size": 0}, StudyError, "a size is at least 1 pixel"),
        ({"crop_ratio": 1.5}, StudyError, "at most 1"),
    ],
)
def test_an_impossible_policy_is_refused(wrong, error, message):
    """Where it enters, with what is allowed."""
    with pytest.raises(error, match=message):
        PixelPolicy(**wrong)
