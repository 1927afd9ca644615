"""Fine-tuned networks by their kept probabilities: validation against target."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.items import Item
from pipeline.data.samples import Samples
from pipeline.evaluation.predictions import TRAINED_PROBABILITIES, Predictions, predictions_file
from pipeline.results import write_set
from pipeline.shift.fine_tuned import fine_tuned_losses


@pytest.fixture
def kept():
    """A network right on all rows of fit, on 90 % of validation, on 60 % of the target."""
    rng = np.random.default_rng(2)
    n = 300
    label = rng.permutation(np.arange(n) % 2)
    right = rng.random(n) < np.repeat([1.0, 0.9, 0.6], 100)
    called = np.where(right, label, 1 - label)
    proba = np.where(np.arange(2) == called[:, None], 0.8, 0.2).astype(np.float32)
    return Predictions(
        classes=("a", "b"),
        key=rng.integers(0, 256, (n, 32), np.uint8),
        label=label,
        patient=np.arange(n),
        domain=np.repeat(["source", "there"], [200, 100]),
        split=np.repeat(["fit", "validation", "target"], 100),
        proba={("full", 3): proba},
    )


def keep(folder, by_backbone):
    files = {TRAINED_PROBABILITIES: predictions_file(by_backbone)}
    write_set(folder / "finetune.json", {}, files)


def samples_of(kept):
    """The images that the kept probabilities are of."""
    n = len(kept.label)
    return Samples(
        items=tuple(Item(f"p{i}.png", "x", Path("no.png"), None, (0, 0)) for i in range(n)),
        key=tuple(bytes(key) for key in kept.key),
        label=kept.label,
        group=kept.patient.astype(str),
        domain=kept.domain,
        split=kept.split,
        classes=kept.classes,
    )


def test_the_terms_add_up_and_fitted_rows_do_not_count(tmp_path, kept, caplog):
    """Validation is the source; a target that the network has not seen gives no row."""
    samples = samples_of(kept)
    assert fine_tuned_losses(tmp_path, samples, ["there"], 0) == []
    keep(tmp_path, {"tiny": kept})
    (found,) = fine_tuned_losses(tmp_path, samples, ["there", "elsewhere"], 0)
    right = kept.proba["full", 3].argmax(axis=1) == kept.label
    assert (found["backbone"], found["method"], found["seed"]) == ("tiny", "full", 3)
    assert found["source_accuracy"] == pytest.approx(right[100:200].mean())
    assert found["target_accuracy"] == pytest.approx(right[200:].mean())
    effects = {row["name"]: row for row in found["effects"]}
    assert effects["accuracy_loss"]["low"] > 0
    terms = effects["class_mix"]["estimate"] + effects["within_class"]["estimate"]
    assert terms == pytest.approx(effects["accuracy_loss"]["estimate"])
    assert "threshold" in effects
    assert not caplog.text


@pytest.mark.parametrize("was", ["without labels", "labelled otherwise", "with one more", "source"])
def test_networks_of_other_images_or_labels_are_left_out_and_said(tmp_path, kept, caplog, was):
    """A target that had no labels then, was relabelled, or lost an image; or the source was."""
    there, stays = kept.domain == "there", np.ones(300, bool)
    samples = samples_of(kept)
    if was == "without labels":
        kept = replace(kept, label=np.where(there, -1, kept.label))
    elif was == "labelled otherwise":
        kept = replace(kept, label=np.where(np.arange(300) == 299, 1 - kept.label, kept.label))
    else:
        stays[0 if was == "source" else 299] = False
    keep(tmp_path, {"tiny": kept, "too": kept})
    assert fine_tuned_losses(tmp_path, samples.where(stays), ["there"], 0) == []
    (said,) = caplog.messages
    assert "finetune.h5" in said
    assert "headrace finetune STUDY" in said
    assert ("(source)" if was == "source" else "(there)") in said
