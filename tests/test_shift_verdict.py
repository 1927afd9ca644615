"""A verdict says what the intervals allow, and nothing else."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.data.domain import DomainData
from pipeline.shift.decompose import DecomposeSettings, decompose
from pipeline.shift.domains import Cohort, fit_source
from pipeline.shift.effects import Gap
from pipeline.shift.verdict import CAUSES, Auroc, Called, FixGain, Numbers, judge
from tests.shifted_worlds import draw

NOTHING = Gap(estimate=0.0, low=-0.02, high=0.02, p_largest=0.0)
LOSS = Gap(estimate=0.14, low=0.10, high=0.18, p_largest=1.0)
GAIN = Gap(estimate=-0.05, low=-0.08, high=-0.02, p_largest=0.0)


def numbers(**changes):
    """Build the numbers of a target that loses 14 points for no clear reason."""
    base = Numbers(
        target="clinic B",
        source_error=0.03,
        target_error=0.17,
        total=LOSS,
        kitagawa={"mix": NOTHING, "rate": NOTHING},
        score={"confidence_shift": NOTHING, "y_given_score": NOTHING},
        threshold={"transfer": NOTHING, "discrimination": NOTHING},
        transfer={"target_hardness": NOTHING, "transfer_gap": NOTHING},
    )
    return replace(base, **changes)


#: Which term, made dominant, names which cause, and a piece of its advice.
NAMED = {
    "hard_target": ("transfer", "target_hardness", "adaptation cannot win"),
    "transfer_gap": ("transfer", "transfer_gap", "Adapt the head"),
    "y_given_score": ("score", "y_given_score", "Label-free estimates are invalid"),
    "threshold": ("threshold", "transfer", "Choose the threshold anew, or recalibrate"),
    "discrimination": ("threshold", "discrimination", "will not mend"),
    "mix": ("kitagawa", "mix", "class mix"),
}


def with_term(family, term, gap, **changes):
    """Replace one term of one family."""
    return numbers(**{family: {**getattr(numbers(), family), term: gap}}, **changes)


def test_the_cases_here_are_all_there_are():
    """Each line of the interpretation table is tried below."""
    assert set(NAMED) == set(CAUSES)


@pytest.mark.parametrize("cause", NAMED)
def test_a_dominant_term_names_its_cause(cause):
    """The interpretation table: term, cause, sentence with interval, advice."""
    family, term, advice = NAMED[cause]
    found = judge(with_term(family, term, LOSS))
    assert found.causes == (cause,)
    assert advice in found.advice[0]
    assert "14.0 points (95 % CI 10.0 to 18.0)" in found.text.removeprefix("clinic B")


def test_causes_of_different_views_do_not_contradict():
    """Each sentence opens with its view: two views may both call a term of theirs the most."""
    score = {"confidence_shift": NOTHING, "y_given_score": LOSS}
    text = judge(with_term("threshold", "discrimination", LOSS, score=score)).text
    assert "By score: most of the loss is that a score no longer means" in text
    assert "By threshold: most of the loss stays at the target's own best one" in text
    assert "Most of the loss" not in text


@pytest.mark.parametrize("cause", NAMED)
@pytest.mark.parametrize(
    "gap",
    [
        Gap(estimate=0.14, low=0.10, high=0.18, p_largest=0.94),
        Gap(estimate=0.14, low=-0.01, high=0.29, p_largest=0.99),
        NOTHING,
    ],
)
def test_a_term_that_is_not_sure_names_nothing(cause, gap):
    """Largest in 94 % of draws, or an interval with 0 in it: no cause, and the text says so."""
    family, term, _ = NAMED[cause]
    found = judge(with_term(family, term, gap))
    assert found.causes == ()
    assert "No single cause is shown" in found.text


@pytest.mark.parametrize("total", [NOTHING, GAIN])
def test_without_a_loss_no_cause_is_named(total):
    """Terms may be large while the loss is not shown: they cause nothing then."""
    found = judge(with_term("threshold", "transfer", LOSS, total=total))
    assert found.causes == found.advice == ()
    assert "ost of the loss" not in found.text
    assert "cause" not in found.text


def test_no_loss_is_not_proof_of_none():
    """An interval around 0 is never told as equality."""
    text = judge(numbers(total=NOTHING)).text
    assert "no loss of accuracy is shown (97.0 % to 83.0 %" in text
    assert "That is not proof of none." in text


def test_a_gain_is_told_as_such():
    """A target that is easier than the source is no loss."""
    text = judge(numbers(total=GAIN, target_error=0.01, source_error=0.06)).text
    assert text.startswith("clinic B: accuracy rises from 94.0 % to 99.0 %")


def test_hard_target_needs_a_small_transfer_gap():
    """Hardness is no acquittal while the head is shown to lose by its training elsewhere."""
    lost = Gap(estimate=0.05, low=0.02, high=0.08, p_largest=0.0)
    found = judge(numbers(transfer={"target_hardness": LOSS, "transfer_gap": lost}))
    assert "hard_target" not in found.causes


@pytest.mark.parametrize("cause", ["threshold", "mix"])
@pytest.mark.parametrize("changed", [LOSS, GAIN])
def test_label_free_advice_is_withheld_where_y_given_score_changed(cause, changed):
    """D-T3: a re-threshold without labels is not advertised once stable Y|score is refuted."""
    family, term, _ = NAMED[cause]
    score = {"confidence_shift": NOTHING, "y_given_score": replace(changed, p_largest=0.5)}
    found = judge(with_term(family, term, LOSS, score=score))
    assert found.labels_needed
    assert "with labelled images of the target" in found.advice[0]


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (Gap(estimate=0.00, low=-0.010, high=0.015), "AUROC holds"),
        (Gap(estimate=0.00, low=-0.010, high=0.030), "A change of AUROC is not shown"),
        (Gap(estimate=0.10, low=0.050, high=0.150), "AUROC falls"),
        (Gap(estimate=-0.10, low=-0.150, high=-0.050), "AUROC rises"),
    ],
)
def test_auroc_holds_only_if_the_interval_is_small(loss, words):
    """To hold is a claim of equivalence, not of a missing difference."""
    text = judge(numbers(auroc=Auroc(source=0.97, target=0.96, loss=loss))).text
    assert f"{words}: 0.970 on the source, 0.960 on the target" in text


def test_calls_are_told_against_the_truth():
    """Share called positive against share positive."""
    text = judge(numbers(called=Called(called=0.64, positive=0.5))).text
    assert "64.0 % are called positive, 50.0 % are." in text


def test_fixes_are_told_if_they_survive_the_other_tries():
    """Of all fixes, only one with an adjusted p-value and an interval above 0 is told."""
    good = Gap(estimate=0.045, low=0.02, high=0.07)
    fixes = {
        "standardising": FixGain(gain=good, p_holm=0.01),
        "lucky": FixGain(gain=replace(good, low=0.03), p_holm=0.2),
        "unsure": FixGain(gain=replace(good, low=-0.01), p_holm=0.01),
    }
    told = judge(numbers(fixes=fixes)).text
    assert "Without target labels, standardising gives 4.5 points (95 % CI 2.0 to 7.0)." in told
    assert "lucky" not in told
    del fixes["standardising"]
    assert "No fix without target labels is shown to help." in judge(numbers(fixes=fixes)).text
    assert "fix" not in judge(numbers()).text


def test_foretold_accuracy_carries_its_assumption():
    """Label-free estimates are told with the assumption, or as invalid once it is refuted."""
    stable = judge(numbers(foretold=(0.8, 0.9)))
    assert "put at 80.0 % to 90.0 %, assuming stable Y|score." in stable.text
    assert not stable.labels_needed
    refuted = judge(with_term("score", "y_given_score", LOSS, foretold=(0.8, 0.9)))
    assert "those estimates are invalid here" in refuted.text


def from_world(kind, push=0.0):
    """Decompose a generated pair of hospitals; ``push`` moves the target towards "ill"."""
    world = draw(kind, 0)
    groups = np.arange(len(world.source))
    model = fit_source(
        DomainData(
            name="source",
            role="source",
            group=groups,
            label=world.source_labels.astype(np.int64),
            features=world.source,
        )
    )
    source = Cohort(
        features=model.standard,
        probabilities=model.data.proba,
        groups=groups,
        labels=world.source_labels,
    )
    towards = model.head.coef_[0] / np.linalg.norm(model.head.coef_[0])
    moved = model.standardise(world.target) + push * towards
    target = Cohort(
        features=moved,
        probabilities=model.head.predict_proba(moved),
        groups=np.arange(len(world.target)) + 10_000,
        labels=world.target_labels,
    )
    found = decompose(source, target, DecomposeSettings(draws=400))
    wrong = [one.probabilities.argmax(axis=1) != one.labels for one in (source, target)]
    return Numbers(
        target=kind,
        source_error=float(wrong[0].mean()),
        target_error=float(wrong[1].mean()),
        total=found.total,
        kitagawa=found.kitagawa,
        score=found.score.terms,
        threshold=found.threshold.terms,
    )


def test_nothing_is_found_where_nothing_shifted():
    """Two samples of one hospital: no cause, no warning."""
    found = judge(from_world("none"))
    assert found.causes == ()
    assert not found.labels_needed


def test_a_reversed_shortcut_forbids_label_free_repair():
    """D-T3: Y|score is refuted, and no advice relies on the target's scores alone."""
    found = judge(from_world("shortcut"))
    assert found.labels_needed
    assert "discrimination" in found.causes
    assert "Another threshold will not mend this." in found.advice
    assert not {"threshold", "mix"} & set(found.causes)


def test_a_moved_threshold_is_named_on_a_real_fit():
    """Images that all look more ill: the threshold is named, and to be found with labels."""
    found = judge(from_world("none", push=1.5))
    assert "threshold" in found.causes
    assert "discrimination" not in found.causes
    assert found.labels_needed
