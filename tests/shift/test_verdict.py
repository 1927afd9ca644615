"""A verdict says what the intervals allow, and nothing else."""

from dataclasses import replace

import pytest

from pipeline.data.leaks import OK, WARNING, Finding
from pipeline.evaluation.intervals import Interval
from pipeline.shift.adapt_eval import BestMethod
from pipeline.shift.decompose import Effect
from pipeline.shift.verdict import CAUSES, Evidence, caveats, verdict, verdict_without_labels
from tests.shift.causes import rates

DIVISIONS = {
    "class_mix": "class", "within_class": "class", "sex_mix": "by sex", "within_sex": "by sex",
    "confidence_shift": "score", "y_given_score": "score", "target_hardness": "transfer",
    "transfer_gap": "transfer",
}  # fmt: skip
#: Cause: the effect that is shown, whether the images differ, whether a method helps, and a
#: piece of the sentence.
CASES = {
    "class_mix": ("class_mix", True, False, "for the class shares of the target"),
    "subgroup_mix": ("sex_mix", True, False, "another mix of patients by sex"),
    "acquisition": ("transfer_gap", True, True, "exposure, contrast or device"),
    "acquisition_or_labels": ("transfer_gap", True, False, "cannot tell them apart"),
    "label_definition": ("transfer_gap", False, False, "Another definition of the label fits"),
    "harder_images": ("target_hardness", True, False, "Noise, blur and harder patients fit"),
    "label_errors": ("target_hardness", False, False, "Label errors fit"),
    "harder_images_or_label_errors": ("target_hardness", None, False, "label errors all fit"),
}
LOSS = {"estimate": 0.14, "low": 0.10, "high": 0.18, "largest": 1.0}
GAIN = {"estimate": -0.05, "low": -0.08, "high": -0.02}


def effect(name, division, estimate=0.0, low=-0.02, high=0.02, largest=0.0):
    return Effect(
        name=name, division=division, estimate=estimate, low=low, high=high, largest=largest,
        images=0, patients=0, method="",
    )  # fmt: skip


def evidence(differ=None, *, adaptable=False, **changes):
    """A loss of 14 points inside all groups; ``changes`` are values of effects."""
    found = {name: effect(name, division) for name, division in DIVISIONS.items()}
    found["accuracy_loss"] = effect("accuracy_loss", "all", 0.14, 0.10, 0.18, None)
    inside = {"estimate": 0.12, "low": 0.08, "high": 0.16}
    for name, values in {"within_class": inside, "within_sex": inside, **changes}.items():
        found[name] = replace(found[name], **values)
    return Evidence(effects=found, images_differ=differ, adaptable=adaptable)


def said(found, **rest):
    return verdict("clinic B", found, **{"accuracy": (0.97, 0.83)} | rest)


def test_the_cases_here_are_all_there_are():
    """Each line of the interpretation table is tried below."""
    assert set(CASES) == set(CAUSES)


@pytest.mark.parametrize("cause", CASES)
def test_an_effect_names_its_cause(cause):
    """The interpretation table: what is shown, sentence with interval, what fits."""
    name, differ, adaptable, words = CASES[cause]
    found = said(evidence(differ, adaptable=adaptable, **{name: LOSS}))
    assert found.causes == (cause,)
    assert "14.0 points (95 % CI 10.0 to 18.0)" in found.sentences[1]
    assert words in found.sentences[1]


@pytest.mark.parametrize("cause", CASES)
def test_an_effect_that_is_not_sure_names_nothing(cause):
    """An interval with 0 in it: no cause, and the text says so."""
    name, differ, adaptable, _ = CASES[cause]
    unsure = {"estimate": 0.14, "low": -0.01, "high": 0.29, "largest": 0.99}
    found = said(evidence(differ, adaptable=adaptable, **{name: unsure}))
    assert found.causes == ()
    assert "No cause is shown" in found.sentences[1]


def test_a_mix_that_is_not_surely_the_largest_is_no_cause():
    """Of the draws 90 % must agree."""
    assert said(evidence(class_mix=LOSS | {"largest": 0.89})).causes == ()


def test_of_several_causes_a_mix_comes_first_and_two_are_said():
    """Others follow by their size."""
    small = LOSS | {"estimate": 0.11}
    found = said(evidence(True, class_mix=small, target_hardness=small, transfer_gap=LOSS))
    assert found.causes == ("class_mix", "acquisition_or_labels", "harder_images")
    assert len([s for s in found.sentences if "(95 % CI 10.0" in s]) == 3  # the loss and two


def test_where_nothing_is_lost_inside_the_groups_only_the_mix_is_named():
    """Another mix alone makes the target harder: that is no second cause."""
    for inside in ("within_class", "within_sex"):
        unsure = {inside: {"estimate": 0.01, "low": -0.01, "high": 0.03}}
        found = said(evidence(True, class_mix=LOSS, target_hardness=LOSS, **unsure))
        assert found.causes == ("class_mix",)


@pytest.mark.parametrize("total", [{"low": -0.02}, GAIN])
def test_without_a_loss_no_cause_is_named(total):
    """Effects may be large while the loss is not shown: they cause nothing then."""
    found = said(evidence(True, class_mix=LOSS, transfer_gap=LOSS, accuracy_loss=total))
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
    found = said(evidence(accuracy_loss=total), accuracy=accuracy, auroc=(0.97, 0.96))
    assert found.sentences[0].startswith(words)
    assert found.sentences[0].endswith("AUROC is 0.970 and 0.960.")


@pytest.mark.parametrize("changed", [LOSS | {"largest": 0.5}, GAIN])
def test_a_changed_score_forbids_what_needs_no_labels(changed):
    """Whether scores mean more or less than on the source."""
    found = said(evidence(y_given_score=changed))
    assert found.labels_needed
    assert "must not be used" in found.sentences[-1]
    assert not said(evidence()).labels_needed


def test_measures_of_the_images_stand_beside_causes_that_are_of_images():
    """And beside no other."""
    words = "What differs most is noise."
    assert words in said(evidence(True, target_hardness=LOSS), measured=words).sentences
    assert words not in said(evidence(False, target_hardness=LOSS), measured=words).sentences


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (True, "coral regains 4.5 points (95 % CI 2.0 to 7.0), corrected for the choice."),
        (False, "is shown to help; the best, coral, gains 4.5 points (95 % CI 2.0 to 7.0)."),
    ],
)
def test_the_best_method_is_said_with_its_corrected_gain(shown, words):
    """Whether it is shown to help or not, so that lucky gains are not the only ones told."""
    gain = Interval(estimate=0.045, low=0.02, high=0.07, images=9, patients=9, method="")
    best = BestMethod(method="coral", gain=gain, shown=shown)
    assert words in said(evidence(), best=best).sentences[-1]


def test_without_labels_the_range_says_what_it_cannot_see():
    """And warns where the domains differ; where they hardly overlap there is no number."""
    found = verdict_without_labels("far", source_accuracy=0.95, known=(0.8, 0.9), shifted=[])
    assert "estimated at 80.0 % to 90.0 % (95.0 % on the source)" in found.sentences[1]
    assert "noise and blur go unseen" in found.sentences[1]
    assert not found.labels_needed
    doubted = verdict_without_labels("far", source_accuracy=0.9, known=(0.8, 0.9), shifted=["mmd"])
    assert "shown to differ (mmd)" in doubted.sentences[2]
    assert doubted.labels_needed
    nothing = verdict_without_labels("far", source_accuracy=0.9, known=None, shifted=["mmd"])
    assert not any("estimated at" in sentence for sentence in nothing.sentences)
    assert "Label some" in nothing.sentences[1]


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


# --- on generated hospitals


@pytest.mark.parametrize(
    ("kind", "strength"), [("prevalence", 0.9), ("scanner offset", 1.2), ("label noise", 0.3)]
)
def test_a_strong_shift_is_named(kind, strength):
    """In most of a few hospitals; ``make calibration`` has the whole table."""
    right, wrong, _ = rates(kind, strength, 3)
    assert right >= 2 / 3
    assert wrong <= 1 / 3


@pytest.mark.slow
def test_in_two_hundred_hospitals_of_thirty_patients_without_a_shift_none_is_named():
    """A cause is named in 5 % at most."""
    _, wrong, _ = rates("none", 0.3, 200, patients=30)
    assert wrong <= 0.05
