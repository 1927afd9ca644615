"""What is nothing is shown as nothing, wherever numbers are read by people."""

from types import SimpleNamespace

import pytest

from pipeline.report.compare_text import points_text
from pipeline.report.page_shift import _SHOWN
from pipeline.report.shift_text import _fixes_table
from pipeline.words import zero_noise

LEFT = -4.441e-18


@pytest.mark.parametrize(
    ("value", "shown"), [(LEFT, 0.0), (1.11e-16, 0.0), (-0.0, 0.0), (-4e-4, -4e-4), (1e-8, 1e-8)]
)
def test_only_what_rounding_leaves_is_nothing(value, shown):
    """Small values stay, with their sign: an interval that ends at -0.0 points ends below 0."""
    assert zero_noise(value) == shown
    assert str(zero_noise(value)) == str(shown)


def test_tables_show_no_sign_of_nothing():
    """On the page and in the terminal a difference of nothing is +0.0, with the digits of all."""
    assert points_text(LEFT, -0.0412, LEFT) == "+0.0 [-4.1, +0.0]"
    assert points_text(-0.001, -0.002, -0.0004) == "-0.1 [-0.2, -0.0]"
    difference = SimpleNamespace(estimate=LEFT, low=-0.0412, high=0.0446)
    row = SimpleNamespace(name="x", accuracy=0.8, auroc=0.9, difference=difference, p_holm=1.0)
    assert "+0.0    -4.1 to +4.5" in _fixes_table([row])
    cell = _SHOWN["ng"][1]["% of images, 95 % interval"]
    assert cell({"estimate": LEFT, "low": 0.0, "high": 1.1e-16}) == "0.0 [0.0, 0.0]"
    assert cell({"estimate": 0.5}) == "50.0"
    assert cell({"low": 0.1, "high": 0.2}) == "[10.0, 20.0]"
    assert cell({}) == "-"
