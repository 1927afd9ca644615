"""Per-image probabilities: what was written is read, and nobody is named."""

import numpy as np
import pytest

from pipeline.data.items import Item
from pipeline.data.samples import Samples
from pipeline.evaluation.predictions import predictions_file, predictions_of, read_predictions
from pipeline.results import write_set


@pytest.fixture
def samples():
    """Three images of two patients."""
    return Samples(
        key=tuple(bytes([i]) * 32 for i in range(3)),
        label=np.array([0, 1, 1]),
        group=np.array(["mrs-a", "mr-b", "mrs-a"]),
        domain=np.array(["source", "source", "there"]),
        split=np.array(["fit", "validation", "target"]),
        items=tuple(Item(f"{name}.png", "normal", f"/{name}.png", None, None) for name in "abc"),
        classes=("normal", "pneumonia"),
    )


def test_what_was_written_is_read(tmp_path, samples):
    """Every field, for every backbone and predictor."""
    proba = np.random.default_rng(0).dirichlet(np.ones(2), 3)
    kept = predictions_of(samples, {("linear", 0): proba, ("mlp", 3): proba[::-1]})
    files = {"p.h5": predictions_file({"net": kept, "other": kept})}
    write_set(tmp_path / "p.json", {}, files)
    read = read_predictions(tmp_path / "p.h5")
    assert set(read) == {"net", "other"}
    found = read["net"]
    assert found.classes == ("normal", "pneumonia")
    for name in ("key", "label", "patient", "domain", "split"):
        np.testing.assert_array_equal(getattr(found, name), getattr(kept, name))
    assert set(found.proba) == {("linear", 0), ("mlp", 3)}
    np.testing.assert_array_equal(found.proba["linear", 0], proba)
    assert found.patient[0] == found.patient[2] != found.patient[1]


def test_no_patient_and_no_path_is_in_the_file(samples):
    """Results are passed on more freely than images."""
    content = predictions_file({"net": predictions_of(samples, {})})
    assert b"mrs-a" not in content
    assert b"a.png" not in content
