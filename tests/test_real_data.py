"""Real chest X-rays, where they are: the numbers that a separate measurement expects."""

from pathlib import Path

import pytest

from pipeline.compare import CompareOptions, compare
from pipeline.data.images import Transform
from pipeline.data.sources import read_image
from pipeline.features.extract import extract
from pipeline.study_file import load_study
from tests.image_files import listed

DATA = Path(__file__).parents[2] / "shared" / "data" / "cxr"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real X-rays in {DATA}")
GROUP = r"group = '^(person\d+|(?:NORMAL2-)?IM-\d+|\d{8})'"


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Children's X-rays, another set of the same hospital, NIH; the current folder is empty."""
    monkeypatch.chdir(tmp_path)
    lines = ['name = "cxr"', "[source]", f'path = "{DATA / "kermany_train"}"', GROUP]
    for name in ("kermany_test", "nih"):
        lines += [f"[target.{name}]", f'path = "{DATA / name}"', GROUP]
    Path("study.toml").write_text("\n".join([*lines, "[backbone.efficientnet_lite0]"]))
    return load_study(Path("study.toml"))


@pytest.mark.slow
def test_the_three_stories_of_the_chest_x_rays(study):
    """Inside 95 to 98 %, another set of the same hospital near 82 %, NIH at chance.

    The linear head's numbers; the range for kermany_test is the measured 0.82 to 0.86
    widened by the 1.9 points that are one standard error of 400 images.
    """
    report = extract(study)
    assert report["backbones"][0]["images_in"] == 2800
    assert not report["skipped"]
    (backbone,) = compare(study, CompareOptions(heads=("linear",)))["backbones"]
    score = {
        (one["domain"], one["role"], metric): value["estimate"]
        for one in backbone["domains"]
        for metric, value in one["rows"][0]["scores"].items()
    }
    assert 0.95 <= score["source", "validation", "accuracy"] <= 0.98
    assert 0.80 <= score["kermany_test", "target", "accuracy"] <= 0.86
    assert score["kermany_test", "target", "auroc"] >= 0.94
    assert 0.42 <= score["nih", "target", "accuracy"] <= 0.56


def test_full_resolution_originals_all_decode():
    """Eighty originals, up to 2000 px, JPEG and PNG: none is refused."""
    transform = Transform()
    items = [
        item
        for hospital in ("kermany", "nih")
        for item in listed(DATA / "full_resolution" / hospital).items
    ]
    assert len(items) == 80
    assert {read_image(item).pixels(transform).shape for item in items} == {(224, 224, 3)}


def test_a_real_stack_has_the_pixels_of_its_jpeg_files():
    """The course's stacks are the decoded test files, in the order of their names."""
    files, rows = listed(DATA / "kermany_test").items, listed(DATA / "course_npy").items
    rows = sorted(rows, key=lambda item: (item.label, item.row))
    for file, row in zip(files, rows, strict=True):
        assert file.label == row.label
        of_file, of_row = read_image(file), read_image(row)
        assert (of_file.pixels(Transform()) == of_row.pixels(Transform())).all()
