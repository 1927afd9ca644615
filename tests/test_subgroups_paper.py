"""What is said of subgroups: true where groups are few, unknown or oddly named."""

import json
from itertools import pairwise

import pytest
from markdown_it import MarkdownIt

from pipeline.report.figures import shift
from pipeline.report.figures.shift_data import ShiftData, read_shift
from pipeline.report.figures.style import NotAskedForError, NothingToDrawError, styled
from pipeline.report.shift_subgroups import subgroup_chapter, subgroup_lines, subgroup_parts
from tests.figure_data import write_shift

FEW = "too few: 9 images, 30 needed"


def group(name, estimate=None, *, rest=0.0, below=False, images=60):
    """One group with accuracy and AUROC alone; without an estimate it is too few."""
    once = [0.0, 1.0]
    value = None if estimate is None else {
        "estimate": estimate, "low": 0.1, "high": 0.9, "n": images, "simultaneous": once,
        "rest": {"estimate": rest, "low": rest - 0.1, "high": rest + 0.1, "below": below},
    }  # fmt: skip
    return {
        "name": name, "images": images, "patients": images, "missing": {}, "prevalence": None,
        "few": None if value else FEW,
        "metrics": {"accuracy": value, "auroc": value} if value else {},
    }  # fmt: skip


def target(*groups, worst=None):
    """An entry of ``targets`` with one table."""
    table = {"domain": "target", "attribute": "sex", "threshold": 0.5, "groups": groups}
    return {"target": "x", "subgroups": [table | {"worst": worst or {}}]}


UNRANKED = [
    ([group("F"), group("M")], "no group is large enough to have numbers"),
    ([group("F"), group("unknown", 0.9)], "no group is large enough to have numbers"),
    ([group("F", 0.9)], "there is only one group, F: nothing to compare it with"),
    (
        [group("F", 0.9), group("M", images=0), group("unknown", 0.8)],
        "there is only one group, F: nothing to compare it with",
    ),
    (
        [group("F"), group("M", 0.8), group("unknown", 0.9)],
        "all groups but M are too few: nothing to compare it with",
    ),
]


@pytest.mark.parametrize(("groups", "said"), UNRANKED)
def test_why_no_group_is_the_worst_is_said_as_it_is(groups, said):
    """None large enough, only one, all but one too few: each has its own sentence."""
    one = target(*groups)
    assert [part.sentences for part in subgroup_parts(one)] == [(said,)]
    assert f"- {said}" in subgroup_chapter(one)
    assert f"sex: {said}" in subgroup_lines(one)


def test_an_attribute_without_a_worst_group_is_not_silent_beside_another():
    """Its sentence stands below the table of the others."""
    one = target(group("F", 0.9), group("M", 0.8), worst={"accuracy": "M"})
    one["subgroups"] += [{**target(group("old"))["subgroups"][0], "attribute": "age"}]
    assert "age: no group is large enough to have numbers" in subgroup_lines(one)
    assert not [line for line in subgroup_lines(one) if line.startswith("sex: ")]


def test_a_worst_group_above_the_rest_is_explained():
    """Who reads +1.2 points learns which images of the rest are in no ranked group."""
    groups = [group("F", 0.9), group("M", 0.8, rest=0.012), group("old"), group("unknown", 0.3)]
    one = target(*groups, worst={"accuracy": "M"})
    why = (
        "the rest includes images that are in no ranked group (old, unknown), so the worst of "
        "the ranked can lie above it"
    )
    (said,) = subgroup_parts(one)[0].sentences
    assert said.endswith(f"not shown to be below the rest (+1.2 points, -8.8 to +11.2); {why}")
    assert f"sex, accuracy: {why}" in " ".join(subgroup_lines(one))
    one = target(*groups[:2], worst={"auroc": "M"})
    (said,) = subgroup_parts(one)[0].sentences
    assert said.endswith("; the AUROC of several groups together can be below that of each")
    one = target(group("F", 0.9), group("M", 0.8, rest=-0.1), group("old"), worst={"auroc": "M"})
    (said,) = subgroup_parts(one)[0].sentences
    assert said.endswith("points, -20.0 to +0.0)")


@pytest.mark.parametrize(
    "name",
    [
        "[x](http://y)",
        "[x][y]",
        "![x](y)",
        "[x]: /y",
        "a|b",
        "`c` *d* _e_",
        "<b>bold</b>",
        "&lt;",
        "~~f~~",
        "g\\*",
        "h_i",
        "__init__",
        "_j__k_ l__",
    ],
)
def test_a_name_is_itself_in_markdown(name):
    """In a cell, in a sentence and in a heading; an independent reader of Markdown shows it."""
    one = target(group(name, 0.5, below=True), group("M", 0.8), worst={"accuracy": name})
    one["subgroups"][0]["attribute"] = name
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = reader.parse("\n".join(subgroup_chapter(one)))
    shown = [token for token in tokens if token.type == "inline"]
    kinds = {child.type for token in shown for child in token.children}
    assert kinds <= {"text", "text_special"}
    texts = ["".join(child.content for child in token.children) for token in shown]
    assert name in texts
    assert f"{name}, target" in texts
    assert [text for text in texts if text.startswith(f"accuracy: worst in {name} with 0.500")]


def test_a_figure_without_a_single_number_says_why_it_is_not_drawn():
    """It is no error of the program, and not the same as a study without subgroups."""
    fields = {"backbone": "tiny", "classes": ("a", "b"), "predictions": None}
    data = ShiftData(targets=(target(group("F"), group("M")),), **fields)
    with pytest.raises(NothingToDrawError, match="no subgroup is large enough") as caught:
        styled(shift.subgroups)(data)
    assert not isinstance(caught.value, NotAskedForError)


def drawn(folder, *, name="F", low=None):
    """The figure of a report, one of whose groups has another name or lies elsewhere."""
    report = write_shift(folder)
    for table in report["targets"][0]["subgroups"]:
        table["groups"][0]["name"] = name
        for value in table["groups"][1]["metrics"].values() if low is not None else ():
            value["simultaneous"][0] = value["low"] = low
    (folder / "shift.json").write_text(json.dumps(report))
    (data,) = read_shift(folder)
    figure = styled(shift.subgroups)(data)
    styled(figure.draw_without_rendering)()
    return figure


@pytest.mark.parametrize("length", [1, 40, 70, 300])
def test_long_names_of_groups_leave_room_for_the_rest(tmp_path, length):
    """No title runs into another, and the name is inside the figure, both its ends to be read."""
    name = "a" + "n" * length + "z"
    figure = drawn(tmp_path, name=name)
    titles = [axes._left_title.get_window_extent() for axes in figure.axes]
    assert all(one.x1 < other.x0 for one, other in pairwise(titles))
    labels = figure.axes[0].get_yticklabels()
    assert min(label.get_window_extent().x0 for label in labels) > 0
    assert (labels[0].get_text()[0], labels[0].get_text()[-1]) == ("a", "z")


@pytest.mark.parametrize("low", [0.05, 0.6, 0.8])
def test_numbers_of_the_figure_stay_inside_their_panel(tmp_path, low):
    """Points against the rest stand between the axis and the interval, however far left."""
    figure = drawn(tmp_path, name="n" * 50, low=low)
    for axes in figure.axes[1:]:
        frame = axes.get_window_extent()
        assert axes.texts
        assert min(text.get_window_extent().x0 for text in axes.texts) > frame.x0
        assert max(line.get_xdata().max() for line in axes.lines) <= axes.get_xlim()[1]
