"""Ng's table and the intervals of gaps: patients are the units, unknown steps say so."""

import numpy as np
import pytest
from scipy.stats import binom

from pipeline.data.patients import draw_patients
from pipeline.errors import StudyError
from pipeline.evaluation.intervals import rate_interval, wilson
from pipeline.shift.effects import dominant, family, single_gap
from pipeline.shift.error_table import NgRoles, Outcome, ng_table


def clustered_errors(rng, patients, rate):
    """Draw errors of patients with 1 to 5 images, intra-class correlation 0.5."""
    sizes = rng.integers(1, 6, patients)
    groups = np.repeat(np.arange(patients), sizes)
    # An image copies its patient's own coin with probability sqrt(0.5), else tosses anew.
    copied = rng.random(groups.size) < np.sqrt(0.5)
    wrong = np.where(copied, (rng.random(patients) < rate)[groups], rng.random(groups.size) < rate)
    return Outcome(wrong=wrong, groups=groups)


def mismatch_coverage(repeats, *, by_patient):
    """Return the share of intervals of ``mismatch`` that hold the truth, 0.15."""
    hits = 0
    for seed in range(repeats):
        rng = np.random.default_rng([8, seed])
        source, target = clustered_errors(rng, 150, 0.1), clustered_errors(rng, 120, 0.25)
        if not by_patient:
            source, target = (
                Outcome(wrong=one.wrong, groups=np.arange(len(one.wrong)))
                for one in (source, target)
            )
        table = ng_table(
            NgRoles(s_fit=source, s_traindev=source, t_test=target), int(rng.integers(1 << 30)), 300
        )
        gap = table.chain["mismatch"]
        hits += gap.low <= 0.15 <= gap.high
    return hits / repeats


@pytest.mark.parametrize(
    ("repeats", "band"),
    [(200, (0.89, 0.99)), pytest.param(500, (0.93, 0.97), marks=pytest.mark.slow)],
)
def test_clustered_interval_covers_and_unclustered_does_not(repeats, band):
    """A-T6: patients resampled whole cover at 95 %; images resampled singly do not."""
    assert band[0] <= mismatch_coverage(repeats, by_patient=True) <= band[1]
    assert mismatch_coverage(repeats, by_patient=False) < binom.ppf(0.001, repeats, 0.95) / repeats


def outcome(n, errors, first=0):
    """Build a role with a given number of errors."""
    return Outcome(wrong=np.arange(n) < errors, groups=np.arange(n) + first)


def test_ng_table_has_every_step():
    """All five cells and a human level give the chain and the split of the transfer."""
    roles = NgRoles(
        human=0.01,
        s_fit=outcome(400, 8),
        s_traindev=outcome(400, 20),
        t_test=outcome(400, 70),
        t_oracle_cv=outcome(400, 44),
    )
    table = ng_table(roles, 9, 300)
    steps = {name: gap.estimate for name, gap in {**table.chain, **table.transfer}.items()}
    assert steps == pytest.approx(
        {
            "avoidable_bias": 0.01,
            "variance": 0.03,
            "mismatch": 0.125,
            "target_hardness": 0.06,
            "transfer_gap": 0.065,
        }
    )
    assert not table.not_identifiable
    assert sum(gap.p_largest for gap in table.chain.values()) == pytest.approx(1)
    low, high = wilson(20, 400)
    cell = table.errors["s_traindev"]
    assert (cell.low, cell.high, cell.method) == (low, high, "Wilson")


def test_ng_table_says_what_it_cannot_know():
    """Without human and oracle, those steps have a reason and not a 0."""
    roles = NgRoles(s_fit=outcome(400, 8), s_traindev=outcome(400, 20), t_test=outcome(200, 40))
    table = ng_table(roles, 10, 300)
    assert table.chain["mismatch"].estimate == pytest.approx(0.15)
    assert dominant(table.chain) == "mismatch"
    assert set(table.not_identifiable) == {
        "avoidable_bias",
        "target_hardness",
        "transfer_gap",
    }


def test_roles_of_one_domain_stay_paired():
    """Two roles with the same errors differ by 0 in every draw."""
    roles = NgRoles(s_fit=outcome(90, 20), s_traindev=outcome(90, 20), t_test=outcome(50, 10))
    gap = ng_table(roles, 11, 200).chain["variance"]
    assert (gap.estimate, gap.low, gap.high) == (0, 0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"human": 3.0}, "must be a rate"), ({"t_test": outcome(0, 0)}, "role t_test has 0 outcomes")],
)
def test_ng_table_refuses_nonsense(change, message):
    """An empty role or an impossible human level is named."""
    roles = {name: outcome(10, 2) for name in ("s_fit", "s_traindev", "t_test")} | change
    with pytest.raises(StudyError, match=message):
        ng_table(NgRoles(**roles), 0, 10)


def test_rate_is_by_patient_where_patients_repeat():
    """A rate of patients with several images has a wider interval than Wilson's."""
    rng = np.random.default_rng(17)
    one = clustered_errors(rng, 80, 0.3)
    found = rate_interval(one.wrong, one.groups, lambda: draw_patients(one.groups, rng))
    low, high = wilson(int(one.wrong.sum()), len(one.wrong))
    assert found.method == "patient bootstrap"
    assert found.high - found.low > high - low


@pytest.mark.parametrize("wrong", [False, True])
def test_a_rate_on_which_all_draws_agree_has_wilsons_interval_of_its_patients(wrong):
    """Three images of each of ten patients, all right: that is ten hits, not certainty."""
    hits, groups = np.full(30, wrong), np.repeat(np.arange(10), 3)
    found = rate_interval(hits, groups, lambda: draw_patients(groups, np.random.default_rng(0)))
    assert (found.low, found.high) == wilson(10 * wrong, 10)
    assert found.method == "Wilson, patients as trials"


def test_few_patients_without_an_error_show_no_gain():
    """Of three right images little is known; the loss may lie on either side of 0."""
    source = clustered_errors(np.random.default_rng(20), 100, 0.2)
    target = Outcome(wrong=np.zeros(3, bool), groups=np.arange(3) + 1000)
    table = ng_table(NgRoles(s_fit=source, s_traindev=source, t_test=target), 0, 500)
    mismatch = table.chain["mismatch"]
    assert mismatch.estimate == pytest.approx(-source.wrong.mean())
    assert mismatch.high > 0
    assert mismatch.high == pytest.approx(mismatch.estimate + wilson(0, 3)[1], abs=0.02)


@pytest.mark.parametrize("error", [0.02, 0.3])
def test_a_gap_to_few_patients_covers(error):
    """Ten patients of the target: most often none errs, and the interval holds the truth."""
    rng, held = np.random.default_rng(21), 0
    for seed in range(300):
        s, t = (
            Outcome(wrong=rng.random(n) < error, groups=np.arange(n) + first)
            for n, first in ((200, 0), (10, 1000))
        )
        gap = ng_table(NgRoles(s_fit=s, s_traindev=s, t_test=t), seed, 200).chain["mismatch"]
        held += gap.low <= 0 <= gap.high
    assert held >= 270


def test_a_cause_is_dominant_only_if_sure():
    """The largest term is named at 95 % of the draws, and only if it is a loss."""
    rng = np.random.default_rng(18)
    noise = 0.01 * rng.normal(size=(2, 500))
    sure = family({"a": 0.1, "b": 0.0}, {"a": 0.1 + noise[0], "b": noise[1]})
    assert dominant(sure) == "a"
    unsure = family({"a": 0.01, "b": 0.0}, {"a": 0.01 + noise[0], "b": noise[1]})
    assert dominant(unsure) is None
    gain = family({"a": -0.1, "b": -0.3}, {"a": noise[0] - 0.1, "b": noise[1] - 0.3})
    assert gain["a"].p_largest == 1
    assert dominant(gain) is None


def test_undefined_draws_are_left_out():
    """A draw without a value neither moves an interval nor wins."""
    draws = np.array([np.nan, 1.0, 1.0])
    assert single_gap(1.0, draws).low == 1
    both = family({"a": 1.0, "b": 0.0}, {"a": draws, "b": np.zeros(3)})
    assert both["a"].p_largest == 1
