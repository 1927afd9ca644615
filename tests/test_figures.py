"""Figures: drawn from the stages' files, true to their numbers, the same bytes each time."""

import json
import logging
from types import MappingProxyType

import matplotlib as mpl
import numpy as np
import pytest

from pipeline.errors import MissingPredictionsError
from pipeline.figures import finetune, heads, shift
from pipeline.figures.album import draw_album
from pipeline.figures.finetune import read_comparison
from pipeline.figures.heads_data import read_heads
from pipeline.figures.labels import Label, name_points, spread
from pipeline.figures.shift_data import read_shift
from pipeline.figures.style import NothingToDrawError, image_bytes, new_figure, styled
from pipeline.predictions import read_predictions
from tests.figure_data import write_comparison, write_heads, write_shift

#: Stage, with the writer of a made-up result and the reader of what is drawn.
STAGES = {
    "heads": (heads, write_heads, read_heads),
    "shift": (shift, write_shift, read_shift),
    "finetune": (
        finetune,
        write_comparison,
        lambda folder: read_comparison(folder / "comparison.json"),
    ),
}
EVERY = [(stage, name) for stage, (module, *_) in STAGES.items() for name in module.FIGURES]


def data_of(stage, folder, **how):
    """The figures' data of a made-up result."""
    _, write, read = STAGES[stage]
    write(folder, **how)
    (data,) = read(folder)
    return data


def line_with(axes, colour, marker="o"):
    """The one point of each line of a colour and a marker, top to bottom."""
    found = [x for x in axes.lines if (x.get_color(), x.get_marker()) == (colour, marker)]
    return [float(line.get_xdata()[0]) for line in found]


@pytest.mark.parametrize(("stage", "name"), EVERY)
def test_every_figure_is_drawn_the_same_twice(stage, name, tmp_path):
    """Two draws of the same data give the same PNG and the same SVG, byte for byte."""
    data = data_of(stage, tmp_path)
    draw = styled(STAGES[stage][0].FIGURES[name])
    for kind, start in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        first, second = (image_bytes(draw(data), kind) for _ in range(2))
        assert first.startswith(start)
        assert first == second
        assert mpl.__version__.encode() not in first


@pytest.mark.parametrize("stage", STAGES)
def test_a_folder_is_filled_with_both_kinds(stage, tmp_path):
    """Each figure appears as PNG and as SVG below the study's results."""
    module, write, _ = STAGES[stage]
    write(tmp_path)
    written = module.draw(tmp_path)
    wanted = {f"{name}-tiny.{kind}" for name in module.FIGURES for kind in ("png", "svg")}
    assert {path.name for path in written} == wanted
    assert {path.name for path in (tmp_path / "figures").iterdir()} == wanted


@pytest.mark.parametrize(
    ("stage", "how"),
    [
        ("heads", {"heads": ("linear",), "K": 3}),
        ("heads", {"heads": ("linear", "mlp", *"abcdefghijklmnopqr"), "targets": ("x", "y", "z")}),
        ("shift", {"targets": ("x", "y", "z"), "K": 2}),
        ("shift", {"K": 3}),
        ("finetune", {"methods": ("lp", "full", "lp_ft", "wise_ft", "scratch_cnn", "bn_only")}),
    ],
)
def test_few_and_many_fit(stage, how, tmp_path, caplog):
    """One head or twenty, two classes or three, one target or three: nothing fails."""
    module, write, _ = STAGES[stage]
    write(tmp_path, **how)
    assert module.draw(tmp_path)
    assert "could not be drawn" not in caplog.text


def test_a_users_settings_are_left_alone_and_change_nothing(tmp_path):
    """Nothing global of matplotlib moves, and a user's own settings do not reach a figure."""
    write_heads(tmp_path)
    before = dict(mpl.rcParams)
    plain = {path.name: path.read_bytes() for path in heads.draw(tmp_path)}
    assert dict(mpl.rcParams) == before
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "red", "svg.hashsalt": "own"}):
        other = {path.name: path.read_bytes() for path in heads.draw(tmp_path)}
    assert other == plain


def test_names_of_users_are_no_formulas(tmp_path):
    """A dollar sign in a name is a dollar sign."""
    write_heads(tmp_path, targets=("$\\frac{$", "a_b$c$"))
    names = [path.name for path in heads.draw(tmp_path)]
    assert len(names) == 2 * len(heads.FIGURES)


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


def test_steps_lead_from_fitted_images_to_the_target(tmp_path):
    """The waterfall's bars are the errors and the gaps of Ng's table, in percent."""
    report = write_shift(tmp_path)
    (data,) = read_shift(tmp_path)
    axes = styled(shift.waterfall)(data).axes[0]
    ng = report["targets"][0]["ng"]
    bars = {
        text.get_text(): (bar.get_x(), bar.get_width())
        for text, bar in zip(axes.get_yticklabels(), axes.patches, strict=True)
    }
    wanted = {
        "variance": (ng["errors"]["s_fit"], ng["chain"]["variance"]),
        "mismatch": (ng["errors"]["s_traindev"], ng["chain"]["mismatch"]),
    }
    for name, (start, gap) in wanted.items():
        assert bars[name] == pytest.approx((100 * start["estimate"], 100 * gap["estimate"]))
    assert bars["target"] == pytest.approx((0, 20))


def test_stacked_terms_add_up_to_the_loss(tmp_path):
    """Each row's bars have the estimates as widths and end where the loss does."""
    write_shift(tmp_path)
    (data,) = read_shift(tmp_path)
    bars = styled(shift.stacks)(data).axes[0].patches
    widths = [bar.get_width() for bar in bars]
    assert widths[:4] == pytest.approx([-2, 12, 6, 4])
    assert sum(widths[4:6]) == sum(widths[6:]) == pytest.approx(10)


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


def test_what_is_not_in_the_files_is_left_out_with_the_reason(tmp_path, caplog):
    """No empty figure: a line says which one is missing and why."""
    report = write_heads(tmp_path)
    del report["details"]
    (tmp_path / "heads.json").write_text(json.dumps(report))
    with caplog.at_level(logging.INFO, logger="pipeline"):
        names = {path.stem for path in heads.draw(tmp_path)}
    assert names.isdisjoint({"heads-curves-tiny", "heads-path-tiny"})
    assert "figure heads-path of tiny is not drawn: heads.json has no reg" in caplog.text
    write_shift(tmp_path / "s", ng=False, K=3)
    with caplog.at_level(logging.INFO, logger="pipeline"):
        names = {path.stem for path in shift.draw(tmp_path / "s")}
    assert names.isdisjoint({"shift-waterfall-tiny", "shift-roc-tiny"})
    assert "operating points need two classes" in caplog.text


def test_a_figure_that_fails_is_named_and_costs_no_other(tmp_path, caplog):
    """An error in one figure is a warning with its name; the next one is drawn."""

    def broken(_data):
        raise ZeroDivisionError("by hand")

    def empty(_data):
        raise NothingToDrawError("nothing here")

    figures = MappingProxyType({"bad": broken, "none": empty, "good": lambda _: new_figure(1.0)})
    written = draw_album(tmp_path / "figures", figures, None, "x/y")
    assert [path.name for path in written] == ["good-x_y.png", "good-x_y.svg"]
    assert "figure bad of x/y could not be drawn: ZeroDivisionError: by hand" in caplog.text


@pytest.mark.parametrize(("stage", "command"), [("heads", "heads"), ("shift", "shift")])
def test_without_results_the_message_names_the_command(stage, command, tmp_path):
    """Figures are drawn after their stage, never instead of it."""
    with pytest.raises(MissingPredictionsError, match=f"headrace {command} STUDY"):
        STAGES[stage][0].draw(tmp_path)


def test_names_are_spread_without_changing_their_order():
    """At least the gap apart, and untouched where they are far apart already."""
    wanted = np.array([0.5, 0.0, 0.52, 0.51, 2.0])
    placed = spread(wanted, 0.1)
    order = np.argsort(wanted)
    assert np.diff(placed[order]).min() >= 0.1 - 1e-12
    assert (np.argsort(placed) == order).all()
    assert placed[[1, 4]] == pytest.approx([0.0, 2.0])


def test_names_of_points_do_not_cover_each_other():
    """Crowded points get names that overlap neither each other nor the frame."""
    figure = new_figure(4.0)
    axes = figure.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    rng = np.random.default_rng(0)
    labels = [Label(text=f"head {i}", x=x, y=y) for i, (x, y) in enumerate(rng.random((15, 2)))]
    name_points(axes, labels)
    boxes = [text.get_window_extent() for text in axes.texts]
    bare = [type(text).__mro__[1].get_window_extent(text) for text in axes.texts]
    assert len(boxes) == 15
    assert not [(i, j) for i in range(15) for j in range(i) if bare[i].overlaps(bare[j])]
