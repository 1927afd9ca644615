"""A verdict says what the intervals allow, and nothing else."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.data.attributes import Grouping
from pipeline.data.domain import DomainData
from pipeline.data.leaks import OK, WARNING, CheckResult
from pipeline.shift.adapt import BestMethod
from pipeline.shift.decompose import Effect
from pipeline.shift.verdict import CAUSES, caveats, verdict, verdict_without_labels
from tests.shift.causes import rates

DECOMPOSITIONS = {
    "accuracy_loss": "all", "class_mix": "class", "within_class": "class", "sex_mix": "by sex",
    "within_sex": "by sex", "confidence_shift": "score", "y_given_score": "score",
    "target_hardness": "transfer", "transfer_gap": "transfer",
}  # fmt: skip
#: The effect that is shown, whether the images differ, whether a method helps.
CASES = {
    "class_mix": ("class_mix", True, False),
    "subgroup_mix": ("sex_mix", True, False),
    "acquisition": ("transfer_gap", True, True),
    "acquisition_or_labels": ("transfer_gap", True, False),
    "label_definition": ("transfer_gap", False, False),
    "label_errors": ("target_hardness", False, False),
    "harder_images_or_label_errors": ("target_hardness", True, False),
}
LOSS = {"estimate": 0.14, "low": 0.10, "high": 0.18, "largest": 1.0}
GAIN = {"estimate": -0.05, "low": -0.08, "high": -0.02}
INSIDE = {"estimate": 0.12, "low": 0.08, "high": 0.16}
SMALL = INSIDE | {"largest": 1.0}
BEST = BestMethod(method="coral", before=0.657, estimate=0.045, low=0.02, high=0.07, p=0.01)


def said(differ=None, *, best=None, accuracy=(0.97, 0.83), measured=None, **changes):
    """The verdict on a loss of 14 points inside all groups; ``changes`` are values of effects."""
    values = {"accuracy_loss": LOSS, "within_class": INSIDE, "within_sex": INSIDE, **changes}
    nothing = {"estimate": 0.0, "low": -0.02, "high": 0.02, "largest": 0.0}
    effects = {
        name: Effect(name=name, decomposition=decomposition, **{**nothing, **values.get(name, {})})
        for name, decomposition in DECOMPOSITIONS.items()
    }
    if "auroc_loss" in changes:
        effects["auroc_loss"] = Effect(
            name="auroc_loss", decomposition="AUROC", **changes["auroc_loss"]
        )
    return verdict(
        "clinic B",
        effects,
        accuracy=dict(zip(("source", "target"), accuracy, strict=True)),
        auroc={"source": 0.97, "target": 0.96},
        images_differ=differ,
        best=best,
        measured=measured,
    )


@pytest.mark.parametrize("cause", CAUSES)
def test_an_effect_names_its_cause_and_an_unsure_one_nothing(cause):
    """The interpretation table: what is shown, with its interval, and what fits.

    More errors inside the classes are shown in both cases, and no sentence denies it.
    """
    name, differ, adaptation_helps = CASES[cause]
    best = BEST if adaptation_helps else None
    conclusion = said(differ, best=best, **{name: LOSS})
    assert conclusion.causes == (cause,)
    assert "14.0 points (95 % CI 10.0 to 18.0)" in conclusion.sentences[1]
    assert conclusion.sentences[1].endswith(CAUSES[cause].fits)
    unsure = {"estimate": 0.14, "low": -0.01, "high": 0.29, "largest": 0.99}
    conclusion = said(differ, best=best, **{name: unsure})
    assert conclusion.causes == ()
    assert conclusion.sentences[1] == "No cause is shown: the effects do not single one out."


def test_a_head_that_does_not_transfer_may_have_learnt_a_shortcut():
    """A marker of one class on the source: the loss is then that of another label or scanner."""
    for cause, (effect, *_) in CASES.items():
        assert ("a shortcut" in CAUSES[cause].fits) == (effect == "transfer_gap")


@pytest.mark.parametrize(
    "cause", sorted(CAUSES.keys() - {"class_mix", "subgroup_mix", "acquisition"})
)
def test_another_definition_of_the_label_is_a_reason_wherever_labels_may_be(cause):
    """If mild cases count as healthy on the target, heads that were trained on it err more too."""
    assert "another definition of the label" in CAUSES[cause].fits


MIX = {"class_mix": LOSS, "transfer_gap": LOSS}


@pytest.mark.parametrize(
    ("changes", "causes"),
    [
        # Of the draws 90 % must agree.
        ({"class_mix": LOSS | {"largest": 0.89}}, ()),
        # A mix comes first, others follow by their size.
        (
            {"class_mix": SMALL, "target_hardness": SMALL, "transfer_gap": LOSS},
            ("class_mix", "acquisition_or_labels", "harder_images_or_label_errors"),
        ),
        # Another mix alone makes the target harder: that is no second cause.
        (MIX | {"within_class": {"low": -0.01}}, ("class_mix",)),
        (MIX | {"within_sex": {"low": -0.01}}, ("class_mix",)),
        # Effects may be large while the loss is not shown: they cause nothing then.
        (MIX | {"accuracy_loss": LOSS | {"low": -0.02}}, ()),
        (MIX | {"accuracy_loss": GAIN}, ()),
    ],
)
def test_which_of_several_effects_are_causes(changes, causes):
    """Two of them are said at most."""
    conclusion = said(True, **changes)
    assert conclusion.causes == causes
    sentences = " ".join(conclusion.sentences)
    assert sum(CAUSES[name].fits in sentences for name in causes) == min(2, len(causes))


@pytest.mark.parametrize(
    ("total", "accuracy", "start", "end"),
    [
        (LOSS, (0.97, 0.83), "Accuracy falls from 97.0 % on the source to 83.0 % on", "14.0"),
        (LOSS | {"low": -0.02}, (0.97, 0.83), "No loss of accuracy is shown: 97.0 %", "-2.0"),
        (GAIN, (0.94, 0.99), "Accuracy rises from 94.0 % on the source to 99.0 % on", "5.0"),
    ],
)
def test_the_first_sentences_are_the_loss_and_auroc(total, accuracy, start, end):
    """A fall, a rise, or nothing shown; both AUROCs where there are any."""
    conclusion = said(accuracy_loss=total, accuracy=accuracy, auroc_loss=LOSS)
    assert conclusion.sentences[0].startswith(start)
    assert end in conclusion.sentences[0]
    assert conclusion.sentences[1] == "AUROC is 0.970 on the source and 0.960 on clinic B."


@pytest.mark.parametrize("changed", [LOSS | {"largest": 0.5}, GAIN])
def test_a_changed_score_forbids_what_needs_no_labels(changed):
    """Whether scores mean more or less than on the source."""
    conclusion = said(y_given_score=changed)
    assert conclusion.labels_needed
    assert "Do not use estimates or thresholds" in conclusion.sentences[-1]
    with_mix = said(y_given_score=changed, class_mix=LOSS).sentences
    assert "Correct the probabilities for the class mix" in " ".join(with_mix)
    assert "Apart from that correction, do not use estimates" in with_mix[-1]
    assert not said().labels_needed


def test_measures_of_the_images_stand_beside_causes_that_are_of_images():
    """And beside no other."""
    words = "The images differ most in noise."
    for differ in (True, False):
        assert (words in said(differ, target_hardness=LOSS, measured=words).sentences) == differ


def test_the_best_method_is_said_with_its_corrected_gain():
    """Whether it is shown to help or not, so that lucky gains are not the only ones told.

    The linear head can be far below the analysed one, so its accuracy before is said too.
    """
    gain = said(best=BEST).sentences[-1]
    assert "coral raises the accuracy of a linear head from 65.7 %, by 4.5 points" in gain
    unsure = said(best=replace(BEST, p=0.09)).sentences[-1]
    assert "method is shown to help" in unsure
    assert "changes its accuracy of 65.7 % by 4.5 points" in unsure
    assert "p is 0.090" in unsure, "it decides, where the interval lies above 0"


def test_without_labels_the_range_says_what_it_cannot_see():
    """And warns where the domains differ; where they hardly overlap there is no number."""

    def unlabelled(accuracy_range, shifted):
        return verdict_without_labels(
            "far", source_accuracy=0.95, accuracy_range=accuracy_range, shifted=shifted
        )

    _, sentence = unlabelled((0.8, 0.9), False)
    assert "estimated at 80.0 % to 90.0 % (95.0 % on the source)" in sentence
    assert "cannot see label errors, another definition of the label, noise or blur" in sentence
    *_, doubt = unlabelled((0.8, 0.9), True)
    assert "The source and far are shown to differ" in doubt
    assert unlabelled((None, None), True)[1].startswith("It is not estimated either")


def test_few_patients_and_what_checks_found_are_caveats():
    """Else there is none."""
    fine = CheckResult(check="copies", severity=OK, where="source", text="no copy")
    shared = replace(fine, severity=WARNING, where="source and b", text="1 patient id")
    source, target = (
        DomainData(name=role, role=role, group=np.arange(n))
        for role, n in (("source", 500), ("target", 100))
    )
    assert caveats(source, target, [fine]) == []
    first, second = caveats(source, target.take(np.arange(4)), [fine, shared])
    assert first.startswith("The target has 4 patients")
    assert second == "source and b: 1 patient id."


def test_a_group_that_the_source_lacks_is_a_caveat():
    """Else it would be silent that the mix of groups is not among the effects."""
    people = DomainData(name="x", role="x", group=np.arange(100))
    of_source, of_target = (
        Grouping(attribute="age", names=("old", "young"), member=np.arange(100) // young)
        for young in (9, 50)
    )
    of_source = replace(of_source, member=of_source.member.clip(max=1))
    groups = [(of_source, of_target)]
    (sentence,) = caveats(people, people, [], groups)
    assert sentence.startswith(
        "By age, the source has under 10 patients of old, so what another mix"
    )
    assert caveats(people, people, [], [(of_target, of_source)]) == []


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
