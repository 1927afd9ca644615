"""Sentences with counts are grammatical for one, none and several."""

import pytest

from pipeline.errors import StudyError
from pipeline.shift.permute import PermutationPlan, refuse_hopeless
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


def test_one_patient_that_cannot_be_relabelled_is_one_patient():
    """Source patients first, then those of the target."""
    with pytest.raises(StudyError, match="^3 source and 1 target patient can be relabelled in 4 "):
        refuse_hopeless(3, 1, PermutationPlan())
