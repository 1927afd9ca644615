"""Figures are true to the numbers of the files: lines, bars and texts are compared with them."""

import json

import numpy as np
import pytest

from pipeline.evaluation.predictions import read_predictions
from pipeline.report.figures import finetune, heads, shift
from pipeline.report.figures.curves import learning_curves
from pipeline.report.figures.finetune import read_comparison
from pipeline.report.figures.heads_data import read_heads
from pipeline.report.figures.shift_data import read_shift
from pipeline.report.figures.style import styled
from tests.figure_data import write_comparison, write_heads, write_shift


def line_with(axes, colour, marker="o"):
    """The one point of each line of a colour and a marker, top to bottom."""
    found = [x for x in axes.lines if (x.get_color(), x.get_marker()) == (colour, marker)]
    return [float(line.get_xdata()[0]) for line in found]


def test_the_forest_shows_the_accuracies_of_the_file(tmp_path):
    """Points are the ensembles' or single values, whiskers their bounds, dots the seeds."""
    report = write_heads(tmp_path, heads=("linear", "mlp"))
    (data,) = read_heads(tmp_path)
    axes = heads.forest(data).axes[1]
    far = {(row["head"], row["seed"]): row for row in report["rows"] if row["domain"] == "far"}
    expected = [far[entry.head, 0] for entry in data.entries]
    assert {row["head"] for row in expected} == {"linear", "mlp_ensemble"}
    assert line_with(axes, "#0072B2") == [row["value"] for row in expected]
    whiskers = [tuple(x.get_xdata()) for x in axes.lines if x.get_marker() == "None"]
    assert whiskers == [(row["low"], row["high"]) for row in expected]
    (dots,) = [x for x in axes.lines if x.get_color() == "#56B4E9" and len(x.get_xdata())]
    assert list(dots.get_xdata()) == [far["mlp", seed]["value"] for seed in (0, 1)]


def test_heads_are_ranked_by_validation(tmp_path):
    """The order is the validation's at every place: targets rank nothing."""
    report = write_heads(tmp_path, heads=("linear", "a", "b", "c"))
    (data,) = read_heads(tmp_path)
    value = {r["head"]: r["value"] for r in report["rows"] if r["role"] == "validation"}
    assert [entry.head for entry in data.entries] == sorted(value, key=lambda head: -value[head])


def test_confusions_count_the_images_of_the_file(tmp_path):
    """Each cell is the number of images of one true and one called class."""
    write_heads(tmp_path, heads=("linear",), K=3)
    (data,) = read_heads(tmp_path)
    kept = read_predictions(tmp_path / "probabilities.h5")["tiny"]
    rows = kept.domain == "far"
    called = kept.proba["linear", 0][rows].argmax(axis=1)
    texts = [int(t.get_text()) for t in heads.confusions(data).axes[1].texts]
    wanted = [((kept.label[rows] == i) & (called == j)).sum() for i in range(3) for j in range(3)]
    assert texts == wanted


def test_curves_and_path_are_those_of_the_file(tmp_path):
    """The strong line is the mean of the seeds; the chosen penalty has the lowest loss."""
    report = write_heads(tmp_path)
    (data,) = read_heads(tmp_path)
    curves = [d["curves"] for d in report["details"] if d["curves"]]
    axes = heads.learning_curves(data).axes[0]
    strong = [line for line in axes.lines if line.get_linewidth() > 1]
    for line, side in zip(strong, ("fit", "validation"), strict=True):
        np.testing.assert_allclose(
            line.get_ydata(), np.mean([c[f"{side}_loss"] for c in curves], axis=0)
        )
    path = next(d["path"] for d in report["details"] if d["path"])
    axes = heads.regularisation_path(data).axes[0]
    assert list(axes.lines[0].get_ydata()) == [step["log_loss"] for step in path]
    assert axes.texts[0].get_text() == "C = 0.1"


@pytest.mark.parametrize(
    ("epochs", "ticks"), [(1, {1}), (3, {1, 2, 3}), (30, {5, 10, 15, 20, 25, 30})]
)
def test_epochs_are_whole_and_counted_from_one(epochs, ticks):
    """There is no epoch 0, and nothing between two of them."""
    run = {"fit_loss": [0.5] * epochs, "fit_accuracy": [0.5] * epochs}
    axes = styled(learning_curves)({"full": [run]}).axes[0]
    assert set(axes.get_xticks()) == ticks


def test_steps_lead_from_fitted_images_to_the_target(tmp_path):
    """The waterfall's bars are the errors and the gaps of Ng's table, in percent."""
    report = write_shift(tmp_path)
    (data,) = read_shift(tmp_path)
    axes = styled(shift.waterfall)(data).axes[0]
    (target,) = report["targets"]
    ng, gaps = target["ng"], target["gaps"]
    names = [text.get_text() for text in axes.get_yticklabels()]
    bars = {
        name: (bar.get_x(), bar.get_width()) for name, bar in zip(names, axes.patches, strict=False)
    }
    assert names[-1] == "avoidable bias"
    assert axes.texts[-1].get_text() == "not identifiable"
    wanted = {
        "variance": (ng["s_fit"], gaps["variance"]),
        "mismatch": (ng["s_traindev"], gaps["mismatch"]),
    }
    for name, (start, gap) in wanted.items():
        assert bars[name] == pytest.approx((100 * start["estimate"], 100 * gap["est"]))
    assert bars["target"] == pytest.approx((0, 20))


def test_stacked_terms_add_up_to_the_loss(tmp_path):
    """Each row's bars have the estimates as widths and end where the loss does."""
    write_shift(tmp_path)
    (data,) = read_shift(tmp_path)
    bars = styled(shift.stacks)(data).axes[0].patches
    widths = [bar.get_width() for bar in bars]
    assert widths[:4] == pytest.approx([-2, 12, 6, 4])
    starts = [bars[i].get_x() for i in (2, 3, 5)]
    assert starts == pytest.approx([0, 6, 4])
    assert sum(widths[4:6]) == pytest.approx(10)


def test_fixes_that_saw_labels_stand_apart(tmp_path):
    """Gains in points; k-shot rows below a heading that says what they use."""
    report = write_shift(tmp_path)
    (data,) = read_shift(tmp_path)
    axes = styled(shift.fixes)(data).axes[0]
    rows = {
        row["name"]: 100 * row["difference"]["estimate"] for row in report["targets"][0]["fixes"]
    }
    blind = line_with(axes, "#0072B2")
    assert blind == pytest.approx([rows["standardisation"], rows["coral"]])
    seeing = line_with(axes, "#E69F00", "s")
    assert seeing == pytest.approx([rows["k_shot(5)"], rows["k_shot(50)"]])
    assert "uses target labels" in [text.get_text() for text in axes.texts]


def test_the_truth_beside_the_forecast_is_the_targets_accuracy(tmp_path):
    """The line stands at the accuracy of the kept probabilities."""
    write_shift(tmp_path)
    (data,) = read_shift(tmp_path)
    kept = read_predictions(tmp_path / "shift.h5")["tiny"]
    rows = kept.domain == "far"
    true = (kept.proba["linear", 0][rows].argmax(axis=1) == kept.label[rows]).mean()
    axes = styled(shift.forecast)(data).axes[0]
    assert true in line_with(axes, "#D55E00", "None")


def test_forecasts_of_several_targets_share_a_scale_and_name_their_bands(tmp_path):
    """Panels can be compared by eye; who sees a band reads what it is, inside the panel."""
    report = write_shift(tmp_path, targets=("x", "y", "z"))
    first, second, _ = report["targets"]
    first["forecast"] |= {"low": 0.05, "high": 0.1}
    second["forecast"] |= {"low": 0.97, "high": 0.99}
    (tmp_path / "shift.json").write_text(json.dumps(report))
    (data,) = read_shift(tmp_path)
    figure = styled(shift.forecast)(data)
    styled(figure.draw_without_rendering)()
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert len({axes.get_xlim() for axes in panels}) == 1
    for axes in panels:
        assert [tick.get_text() for tick in axes.get_xticklabels() if tick.get_visible()]
        bands = [text for text in axes.texts if ":" in text.get_text()]
        assert [text.get_text() for text in bands] == [
            "blue: range of the estimates",
            "grey: 95 % interval of the truth",
        ]
        frame = axes.get_window_extent()
        for text in bands:
            extent = text.get_window_extent()
            assert frame.x0 < extent.x0
            assert extent.x1 < frame.x1


def test_the_line_between_two_networks_is_the_files(tmp_path):
    """Accuracy at every alpha for each place, and the alpha that validation chose."""
    report = write_comparison(tmp_path)
    (data,) = read_comparison(tmp_path / "comparison.json")
    axes = styled(finetune.along_alpha)(data).axes[0]
    mixed = report["rows"][2]["mixed"]
    assert list(axes.lines[1].get_ydata()) == [
        step["domains"][1]["accuracy"] for step in mixed["curve"]
    ]
    assert line_with(axes, "#777777", "None") == [mixed["alpha"]]
