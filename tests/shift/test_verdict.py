"""A verdict says what the intervals allow, and nothing else."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.data.domain import DomainData
from pipeline.data.leaks import OK, WARNING, Finding
from pipeline.evaluation.intervals import Interval
from pipeline.shift.decompose import Effect, decompose
from pipeline.shift.domains import fit_source
from pipeline.shift.verdict import CAUSES, Gain, caveats, verdict, verdict_without_labels
from tests.shifted_worlds import draw

#: Which division each effect is of, and a piece of the advice that it brings.
EFFECTS = {
    "class_mix": ("class", "for the class shares of the target"),
    "threshold": ("threshold", "Choose the threshold again, or recalibrate"),
    "target_hardness": ("transfer", "adaptation cannot help"),
    "transfer_gap": ("transfer", "Adapt the head"),
    "y_given_score": ("score", "another definition of the label"),
    "discrimination": ("threshold", "another threshold does not help"),
}
OTHERS = {"within_class": "class", "confidence_shift": "score"}


def effect(name, division, estimate=0.0, low=-0.02, high=0.02, largest=0.0):
    return Effect(
        name=name, division=division, estimate=estimate, low=low, high=high, largest=largest,
        images=0, patients=0, method="",
    )  # fmt: skip


LOSS = {"estimate": 0.14, "low": 0.10, "high": 0.18, "largest": 1.0}
GAIN = {"estimate": -0.05, "low": -0.08, "high": -0.02}


def effects(**changes):
    """A loss of 14 points for no clear reason; ``changes`` are values of effects."""
    divisions = {name: division for name, (division, _) in EFFECTS.items()} | OTHERS
    found = {name: effect(name, division) for name, division in divisions.items()}
    found["accuracy_loss"] = effect("accuracy_loss", "all", 0.14, 0.10, 0.18, None)
    for name, values in changes.items():
        found[name] = replace(found[name], **values)
    return found


def said(found, **rest):
    return verdict("clinic B", found, **{"accuracy": (0.97, 0.83)} | rest)


def test_the_cases_here_are_all_there_are():
    """Each line of the interpretation table is tried below."""
    assert set(EFFECTS) == set(CAUSES)


@pytest.mark.parametrize("name", EFFECTS)
def test_a_dominant_effect_names_its_cause(name):
    """The interpretation table: effect, cause, sentence with interval, advice."""
    found = said(effects(**{name: LOSS}))
    assert found.causes == (name,)
    assert "14.0 points (95 % CI 10.0 to 18.0)" in found.sentences[1]
    assert EFFECTS[name][1] in found.sentences[1]


def test_of_several_causes_the_first_of_the_table_is_said():
    """All of them are listed; one sentence names one."""
    found = said(effects(discrimination=LOSS, transfer_gap=LOSS))
    assert found.causes == ("transfer_gap", "discrimination")
    assert len([s for s in found.sentences if "14.0 points (95 % CI 10.0" in s]) == 2


@pytest.mark.parametrize("name", EFFECTS)
@pytest.mark.parametrize(
    "values",
    [
        {"estimate": 0.14, "low": 0.10, "high": 0.18, "largest": 0.94},
        {"estimate": 0.14, "low": -0.01, "high": 0.29, "largest": 0.99},
    ],
)
def test_an_effect_that_is_not_sure_names_nothing(name, values):
    """Largest in 94 % of draws, or an interval with 0 in it: no cause, and the text says so."""
    found = said(effects(**{name: values}))
    assert found.causes == ()
    assert "No single cause is shown" in found.sentences[1]


@pytest.mark.parametrize("total", [{"low": -0.02}, GAIN])
def test_without_a_loss_no_cause_is_named(total):
    """Effects may be large while the loss is not shown: they cause nothing then."""
    found = said(effects(threshold=LOSS, accuracy_loss=total))
    assert found.causes == ()
    assert len(found.sentences) == 1


@pytest.mark.parametrize(
    ("total", "accuracy", "words"),
    [
        ({}, (0.97, 0.83), "Accuracy falls from 97.0 % on the source to 83.0 % on clinic B, by"),
        ({"low": -0.02}, (0.97, 0.83), "No loss of accuracy is shown: 97.0 % on the source,"),
        (GAIN, (0.94, 0.99), "Accuracy rises from 94.0 % on the source to 99.0 % on clinic B"),
    ],
)
def test_the_first_sentence_is_the_loss(total, accuracy, words):
    """A fall, a rise, or nothing shown, with both AUROCs where there are any."""
    found = said(effects(accuracy_loss=total), accuracy=accuracy, auroc=(0.97, 0.96))
    assert found.sentences[0].startswith(words)
    assert found.sentences[0].endswith("AUROC is 0.970 and 0.960.")


def test_a_hard_target_needs_a_small_transfer_gap():
    """Hardness is no acquittal while the head is shown to lose against one of the target."""
    lost = {"estimate": 0.05, "low": 0.02, "high": 0.08}
    assert said(effects(target_hardness=LOSS, transfer_gap=lost)).causes == ()


@pytest.mark.parametrize("name", ["threshold", "class_mix"])
@pytest.mark.parametrize("changed", [LOSS | {"largest": 0.5}, GAIN])
def test_advice_without_labels_is_withheld_where_the_score_changed(name, changed):
    """A threshold moved without labels is not advertised once a score means another risk."""
    found = said(effects(**{name: LOSS}, y_given_score=changed))
    assert found.labels_needed
    assert "with labelled images of the target" in found.sentences[1]
    assert "must not be used" in found.sentences[-1]
    assert not said(effects(**{name: LOSS})).labels_needed


def test_a_method_is_named_if_it_survives_the_other_tries():
    """Of all methods, only one with an adjusted p-value and an interval above 0."""

    def gain(low, p):
        interval = Interval(estimate=0.045, low=low, high=0.07, images=9, patients=9, method="")
        return Gain(difference=interval, p_adjusted=p)

    gains = {"coral": gain(0.02, 0.01), "lucky": gain(0.03, 0.2), "unsure": gain(-0.01, 0.01)}
    best = "Without target labels, coral regains 4.5 points (95 % CI 2.0 to 7.0)."
    assert best in said(effects(), gains=gains).sentences
    del gains["coral"]
    nothing = "No adaptation method without target labels is shown to help."
    assert nothing in said(effects(), gains=gains).sentences
    assert nothing not in said(effects()).sentences


def test_no_verdict_is_long():
    """Two to four sentences of plain words, however much there is to say."""
    gains = {"coral": Gain(difference=effects()["accuracy_loss"], p_adjusted=0.01)}
    found = said(effects(y_given_score=LOSS, threshold=LOSS), gains=gains)
    assert 2 <= len(found.sentences) <= 4
    blind = verdict_without_labels(
        "clinic B", source_accuracy=0.9, low=0.7, high=0.8, shifted=["mmd"]
    )
    assert 2 <= len(blind.sentences) <= 4


def test_without_labels_the_estimate_carries_its_assumption():
    """And a warning where the domains are shown to differ."""
    known = {"source_accuracy": 0.95, "low": 0.8, "high": 0.9}
    found = verdict_without_labels("far", **known, shifted=[])
    assert "estimated at 80.0 % to 90.0 % (95.0 % on the source)" in found.sentences[1]
    assert "only if a score means the same risk" in found.sentences[2]
    assert not found.labels_needed
    doubted = verdict_without_labels("far", **known, shifted=["mmd", "c2st"])
    assert "shown to differ (mmd, c2st)" in doubted.sentences[3]
    assert doubted.labels_needed


# --- caveats


def test_a_study_without_trouble_has_no_caveat():
    """A check that found nothing is none either."""
    fine = Finding(check="copies", severity=OK, where="source", text="no copy")
    assert caveats(0, {"source": 500, "target": 100}, [fine]) == ()


def test_each_trouble_has_its_sentence():
    """Shared ids, few patients, and what the checks found."""
    found = Finding(check="copies", severity=WARNING, where="there", text="2 copies in it")
    texts = caveats(3, {"source": 500, "target": 99}, [found])
    pieces = ("3 patient ids are in both", "The target has 99 patients", "there: 2 copies in it.")
    assert len(texts) == len(pieces)
    for text, piece in zip(texts, pieces, strict=True):
        assert piece in text


def test_what_was_found_of_another_target_is_no_caveat_of_this_one():
    """A patient shared by the source and `far` says nothing of `near`."""
    shared = Finding(
        check="patients", severity=WARNING, where="source and far", text="1 patient id"
    )
    assert any("1 patient id" in text for text in caveats(0, {}, [shared]))
    assert not caveats(0, {}, [shared], others={"far"})


# --- on real fits


def from_world(kind, push=0.0):
    """The verdict on a generated pair of hospitals; ``push`` moves the target towards "ill"."""
    world = draw(kind, 0)
    both = [
        DomainData(
            name=role, role=role, group=np.arange(len(label)), label=label.astype(np.int64),
            features=rows,
        )
        for role, rows, label in (
            ("source", world.source, world.source_labels),
            ("target", world.target, world.target_labels),
        )
    ]  # fmt: skip
    model = fit_source(both[0])
    towards = model.head.coef_[0] / np.linalg.norm(model.head.coef_[0])
    moved = model.standardise(both[1].features) + push * towards
    target = both[1].with_(proba=model.head.predict_proba(moved))
    accuracy = tuple(float(1 - one.wrong().mean()) for one in (model.data, target))
    return verdict(kind, decompose(model.data, target, draws=400), accuracy=accuracy)


def test_nothing_is_found_where_nothing_shifted():
    """Two samples of one hospital: no cause, no warning."""
    found = from_world("none")
    assert found.causes == ()
    assert not found.labels_needed


def test_a_reversed_shortcut_forbids_repair_without_labels():
    """A score means another risk, and no cause is named that could be mended blindly."""
    found = from_world("shortcut")
    assert found.labels_needed
    assert "discrimination" in found.causes
    assert not {"threshold", "class_mix"} & set(found.causes)


def test_a_moved_threshold_is_named_on_a_real_fit():
    """Images that all look more ill: the threshold is named, and to be found with labels."""
    found = from_world("none", push=1.5)
    assert found.causes[0] == "threshold"
    assert "discrimination" not in found.causes
    assert found.labels_needed
