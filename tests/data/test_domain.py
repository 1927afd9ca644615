"""The rows of one domain: arrays that stay together."""

import numpy as np
import pytest

from pipeline.data.domain import DomainData
from pipeline.errors import StudyError


def four_images(**changes) -> DomainData:
    """Four images of three patients, every array given."""
    arrays = {
        "group": np.array(["a", "b", "a", "c"]),
        "label": np.array([0, 1, 0, 1]),
        "features": np.arange(8, dtype=np.float32).reshape(4, 2),
        "proba": np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.1, 0.9]]),
        "key": np.zeros((4, 32), np.uint8),
        "row": np.array([7, 3, 5, 9]),
    }
    return DomainData(**{"name": "B", "role": "target", **arrays, **changes})


def test_rows_are_taken_from_every_array():
    """Numbers or a mask: row i of each array stays the same image."""
    data = four_images()
    for taken in (data.take(np.array([3, 1])), data.take(np.array([False, True, False, True]))):
        order = np.argsort(taken.row)
        assert taken.row[order].tolist() == [3, 9]
        assert taken.group[order].tolist() == ["b", "c"]
        assert taken.features[order].tolist() == [[2, 3], [6, 7]]
        np.testing.assert_array_equal(taken.proba[order], data.proba[[1, 3]])
    assert (taken.name, taken.role, len(taken), len(data)) == ("B", "target", 2, 4)
    assert data.sealed().take(np.array([0])).label is None
    assert data.patients == 3
    with pytest.raises(StudyError, match="no images"):
        data.take(np.array([], int))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": np.array([0, 1])}, "one row per image, got .*'label': 2"),
        ({"label": np.array([0, 1, -1, 0])}, "B: some images have no label"),
        ({"proba": np.full((4, 2), np.nan)}, "proba hold NaN or infinity"),
        ({"features": np.full((4, 2), np.inf)}, "features hold NaN or infinity"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes, message):
    """The message names the domain and the array."""
    with pytest.raises(StudyError, match=message):
        four_images(**changes)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (DomainData.get_label, "needs the labels of B"),
        (DomainData.get_proba, "no head has been applied to B"),
        (DomainData.get_features, "without features"),
    ],
)
def test_what_is_missing_is_said(ask, message):
    """Labels may be sealed, probabilities not there yet."""
    with pytest.raises(ValueError, match=message):
        ask(DomainData(name="B", role="target", group=np.arange(3)))
