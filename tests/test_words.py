"""Names, counts and numbers as text for people, and values for JSON."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from pipeline.words import as_file_name, first_of, printable, to_jsonable, zero_noise


@pytest.mark.parametrize(
    ("value", "shown"), [(-4.4e-18, 0.0), (1.1e-16, 0.0), (-0.0, 0.0), (-4e-4, -4e-4), (1e-8, 1e-8)]
)
def test_only_what_rounding_leaves_is_nothing(value, shown):
    """Small values stay, with their sign: an interval that ends at -0.0 points ends below 0."""
    assert str(zero_noise(value)) == str(shown)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Zürich", "Zürich"),
        ("a\nb", "a\\nb"),
        ("\x1b[31m", "\\x1b[31m"),
        ("p\udcff", "p\\udcff"),
        ("b\u202e", "b\\u202e"),
    ],
)
def test_a_name_cannot_drive_a_terminal(name, shown):
    """What is not UTF-8, or turns the text round, is an escape; a file's name is in no folder."""
    assert printable(name) == shown
    assert as_file_name(f"timm:{name}/b+c")[:5] == "timm_"
    assert as_file_name(f"timm:{name}/b+c")[-4:] == "_b+c"


def test_of_many_texts_three_are_named_and_the_others_counted():
    """A message stays readable whatever the number of images."""
    assert first_of("abc") == "a; b; c"
    assert first_of("abcde") == "a; b; c; and 2 more"


@dataclass
class _Row:
    x: object


def test_values_become_json():
    """Dataclasses, arrays, tuples and numbers of NumPy; what is not finite is null."""
    value = {1: _Row(x=np.array([1.5, np.nan])), "b": (np.float32(0.5), np.bool_(True), np.inf)}
    plain = to_jsonable(value)
    assert plain == {"1": {"x": [1.5, None]}, "b": [0.5, True, None]}
    json.dumps(plain, allow_nan=False)
