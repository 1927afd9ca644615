"""What stage 2 prints: made from records, so that every case can be had."""

from dataclasses import replace

import pytest

from pipeline.compare import CompareReport, Honest, Procedure, Row, SeedSpread, Table
from pipeline.evaluation.compare_heads import BestSet, Pair
from pipeline.report.compare_text import heads_text
from pipeline.report.text_tables import WIDTH


def row(head: str, value: float, **other):
    values = {
        "backbone": "tiny", "head": head, "seed": 0, "domain": "there", "role": "target",
        "metric": "accuracy", "value": value, "seconds": 0.25, "low": value - 0.05,
        "high": value + 0.05, "n": 40, "groups": 20, "ci_method": "patient bootstrap",
    }  # fmt: skip
    return Row(**(values | other))


def pair(head: str, difference: float, **other):
    values = {
        "head": head, "baseline": "linear", "reference": "baseline", "domain": "there",
        "role": "target", "metric": "accuracy", "difference": difference,
        "low": difference - 0.02, "high": difference + 0.02, "ci_method": "", "p": 0.0001,
        "p_method": "", "p_holm": 0.0004, "only_head": 3, "only_baseline": 9, "verdict": "worse",
    }  # fmt: skip
    return Pair(**(values | other))


def report(**parts):
    empty = dict.fromkeys(("pairs", "best_sets", "seed_spread", "confusion", "details"), ())
    table = Table(**({"rows": (row("linear", 0.8),), "best": None} | empty | parts))
    return CompareReport(
        study="lung", classes=("a", "b"), baseline="linear", seeds=(0,),
        tables={"tiny": table}, failures=(),
    )  # fmt: skip


def lines_of(**parts) -> list[str]:
    text = heads_text(report(**parts))
    assert max(map(len, text.splitlines())) <= WIDTH
    return text.splitlines()


def test_the_positive_class_is_named():
    """Sensitivity of what, otherwise."""
    assert lines_of()[0] == "lung on tiny; classes: a, b; positive class: b"


def test_more_than_two_classes_have_no_positive_one():
    """All are listed."""
    three = replace(report(), classes=("a", "b", "c"))
    assert heads_text(three).splitlines()[0] == "lung on tiny; classes: a, b, c"


def test_each_domain_has_its_table_with_the_most_accurate_head_first():
    """The fit split has none: it says nothing of other images."""
    rows = (
        row("knn", 0.7), row("lda", 0.9),
        row("knn", 0.95, domain="source", role="validation"),
        row("lda", 0.9, domain="source", role="validation"),
        row("lda", 1.0, domain="source", role="fit"),
    )  # fmt: skip
    lines = lines_of(rows=rows)
    assert [s.split()[0] for s in lines if "[" in s] == ["lda", "knn", "knn", "lda"]
    assert "there: 40 images of 20 patients" in lines
    assert "validation: 40 images of 20 patients" in lines


def test_seeds_are_shown_by_their_ensemble():
    """One line for a kind of head; each seed is in the file."""
    rows = [row("mlp", 0.1), row("mlp", 0.2, seed=1), row("mlp_ensemble", 0.3)]
    shown = [line for line in lines_of(rows=rows) if "mlp" in line]
    assert [" ".join(line.split()[:3]) for line in shown] == ["mlp ensemble 0.300"]


def test_the_line_of_a_head_says_all_about_it():
    """Intervals, points, adjusted p, the word, seconds, and both marks."""
    rows = (row("lda", 0.75), row("linear", 0.8), row("lda", 0.85, metric="auroc"))
    members = BestSet(
        domain="there", role="target", metric="accuracy", members=("linear", "lda"), p={}, alpha=0.1
    )
    lines = lines_of(rows=rows, pairs=(pair("lda", -0.05),), best="lda", best_sets=(members,))
    (line,) = [line for line in lines if line.startswith(" lda")]
    assert " ".join(line.split()) == (
        "lda *~ 0.750 [.700, .800] 0.850 [.800, .900] -5.0 [-7.0, -3.0] <.001 worse 0.2"
    )
    assert "* best by validation: lda" in lines


def test_verdicts_by_auroc_and_against_the_best_take_a_line():
    """Who is better, worse, equivalent or inconclusive; nothing for empty words."""
    lines = lines_of(
        pairs=(
            pair("knn", -0.1, metric="auroc"),
            pair("lda", 0.0, metric="auroc", verdict="inconclusive"),
            pair("knn", -0.1, baseline="lda", reference="best by validation"),
        ),
        best="lda",
    )
    assert " AUROC against linear: worse: knn; inconclusive: lda" in lines
    assert " accuracy against lda *: worse: knn" in lines


def test_long_names_are_broken_before_a_number_is():
    """A p-value without its last digit is another one."""
    name = "standardised_features_then_gradient_boosting_with_many_small_trees"
    lines = lines_of(rows=(row(name, 0.8), row("linear", 0.9)), pairs=(pair(name, -0.1),))
    assert any("-10.0 [-12.0, -8.0]   <.001   worse" in line for line in lines)
    firsts = [line.split()[0] for line in lines if line.strip()]
    assert "".join(word for word in firsts if word in name).endswith(name)


def test_a_baseline_that_was_not_fitted_is_said():
    """Rather than columns that are empty for no reason."""
    without = lines_of(rows=(row("lda", 0.8),))
    assert "the baseline linear is not among the heads that were fitted" in without
    assert not any("not among" in line for line in lines_of())


def test_what_the_seeds_do_is_shown_with_the_chance_to_win():
    """A head without a baseline to beat has an empty cell."""
    one = SeedSpread(
        head="mlp", domain="there", role="target", metric="accuracy", seeds=10, mean=0.9, sd=0.0123,
        low=0.85, high=0.95, ci_method="", n=40, groups=20, baseline="linear", wins=0.7,
        wins_low=0.4, wins_high=1.0,
    )  # fmt: skip
    alone = replace(one, head="forest", baseline=None, wins=None)
    text = "\n".join(lines_of(seed_spread=(one, alone)))
    assert "over 10 trainings" in text
    assert "of wins over seeds" in text
    assert "0.900 [.850, .950]   0.012    0.70 [0.40, 1.00]" in text


@pytest.mark.parametrize(("splits", "asks"), [(5, True), (50, False)])
def test_procedures_are_another_question_with_its_own_table(splits, asks):
    """And few splits say how to have more."""
    one = Procedure(
        head="lda", baseline="linear", metric="accuracy", difference=-0.03, splits=splits,
        rope=0.01, worse=0.9, equal=0.08, better=0.02, p=0.01, p_holm=0.02,
    )  # fmt: skip
    text = "\n".join(lines_of(procedures=(one,)))
    assert f"each of {splits} folds of the fit split" in text
    assert ("--repeats 10" in text) == asks
    assert "-3.0       0.90       0.08        0.02   0.020" in text


def test_the_honest_best_stands_beside_the_apparent_one():
    """The headline is the honest value."""
    one = Honest(
        head="lda", among=7, metric="auroc", apparent=0.91, honest=0.9, low=0.85, high=0.94,
        optimism=0.01, n=80, groups=20,
    )  # fmt: skip
    text = " ".join(" ".join(lines_of(honest=(one,))).split())
    assert "AUROC: honestly 0.900 [.850, .940]; lda looks best of 7 with 0.910" in text
    assert "optimism +0.0100" in text


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"rows": (row("linear", 0.8, groups=99),)}, "intervals by patient are rough: 99 patients"),
        ({"pairs": (pair("mlp", 0.1, only_baseline=0),)}, "no image is seen to differ"),
        (
            {
                "rows": (row("linear", 0.8), row("linear", 0.9, metric="auroc")),
                "pairs": (pair("mlp", 0.1),),
            },
            "AUROC is not compared: that takes 10 patients of each of two classes",
        ),
    ],
)
def test_what_the_images_are_too_few_for_stands_below_the_table(parts, said):
    """Each is said where it holds, and not elsewhere."""
    assert any(said in line for line in lines_of(**parts))
    enough = {
        "rows": (
            row("linear", 0.8, groups=100),
            row("linear", 0.9, metric="auroc", groups=100),
        ),
        "pairs": (pair("mlp", 0.1), pair("mlp", 0.1, metric="auroc", only_head=None)),
    }
    assert not any(said in line for line in lines_of(**enough))
