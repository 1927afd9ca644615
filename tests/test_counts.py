"""Sentences with counts are grammatical for one, none and several."""

import pytest

from pipeline.words import are, counted, have


@pytest.mark.parametrize(
    ("n", "said"), [(0, "0 images are"), (1, "1 image is"), (2, "2 images are")]
)
def test_a_count_and_its_verb_go_together(n, said):
    """Only one is singular."""
    assert f"{counted(n, 'image')} {are(n)}" == said
    assert have(n) == ("has" if n == 1 else "have")


def test_an_irregular_plural_is_given():
    """English has some."""
    assert [counted(n, "copy", "copies") for n in (1, 2)] == ["1 copy", "2 copies"]
