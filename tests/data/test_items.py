"""Values of more than 8 bits: one rule a domain, declared or guessed, and asked where unclear."""

from pathlib import Path

import pytest

from pipeline.data.items import NO_RANGE, window_of
from pipeline.errors import StudyError
from pipeline.study import Domain

ANY = Domain(path=Path("x"))


@pytest.mark.parametrize(
    ("depths", "window"),
    [
        ([None, None], None),
        ([None, 0], None),
        ([4000, 300, None], (0, 4095)),
        ([1000], (0, 1023)),
        ([16383, 900], (0, 16383)),
        ([65535, 900], None),
        ([40000], None),
        ([-112, -112], None),
        ([-1, -1], None),
    ],
)
def test_the_bits_are_guessed_from_all_images(depths, window):
    """The largest value of the domain decides, never that of one picture."""
    assert window_of(ANY, depths) == window


@pytest.mark.parametrize(
    "depths", [[5000], [200], [2200], [20000], [NO_RANGE], [-1, -112], [-1, 4000]]
)
def test_what_is_unclear_is_asked(depths):
    """With what to write."""
    with pytest.raises(StudyError, match=r"source: .*white\. Write for this domain bits = 12"):
        window_of(ANY, depths)
    assert window_of(Domain(path=Path("x"), window=(0, 9)), depths) == (0, 9)
