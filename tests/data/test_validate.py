"""What is said of folders and patterns that look like mistakes."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.data.patients import FIT, VALIDATION
from pipeline.data.validate import warn_classes, warn_folds, warn_patients, warn_share
from pipeline.study import Domain


@pytest.mark.parametrize(("images", "said"), [(9, False), (10, True)])
def test_a_patient_with_half_of_the_images_is_doubted(images, said, caplog):
    """Of a few images it is no wonder."""
    found = ["site1"] * (images - images // 2) + [f"p{i}" for i in range(images // 2)]
    domain = Domain(name="far", path=Path("far"), group="x")
    warn_patients(domain, found, found)
    assert ("images are of one patient, site1" in caplog.text) == said


@pytest.mark.parametrize(("classes", "said"), [(("test", "Train"), True), (("test", "ill"), False)])
def test_classes_that_are_called_like_splits_are_doubted(classes, said, caplog):
    """All of them: a class may well be called test."""
    warn_classes(classes)
    assert ("names of splits" in caplog.text) == said


def test_a_class_of_one_patient_to_learn_from_is_named(caplog):
    """Two patients, of whom one is held out, leave one."""
    split = np.array([FIT, FIT, FIT, VALIDATION])
    warn_folds(("ill", "well"), np.array([0, 0, 1, 1]), ["a", "b", "c", "d"], split)
    assert "has all images of well: heads" in caplog.text
    caplog.clear()
    warn_folds(("ill", "well"), np.array([0, 0, 0, 1]), ["a", "b", "c", "d"], split)
    assert not caplog.text


@pytest.mark.parametrize(("held_out", "said"), [(13, True), (14, False), (30, False), (31, True)])
def test_a_share_far_from_what_was_asked_for_is_said(held_out, said, caplog):
    """Two thirds to three halves of it is near enough."""
    warn_share(0.2, np.repeat([VALIDATION, FIT], [held_out, 100 - held_out]))
    assert (f"validation holds {held_out} % of the images" in caplog.text) == said
