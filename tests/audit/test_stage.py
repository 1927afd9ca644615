"""The audit as a whole: its record, its exit codes, what it needs, and copies."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pipeline.audit.stage as stage_module
from pipeline.audit.stage import audit
from pipeline.data.images import SHEET_SIDE, draw_sheet
from pipeline.data.index import MeasureIndex
from pipeline.data.items import read_lines
from pipeline.data.leaks import LEAK, NOTE, CheckResult, refuse_leaks
from pipeline.data.samples import load_samples
from pipeline.errors import CheckFailedError
from pipeline.features.extract import extract
from pipeline.study_file import load_study
from tests.data.copies import smooth_study
from tests.test_cli import ENGINE, run
from tests.tiny import TORCH, record_of, write_images


def in_split(samples, split, label):
    """File of the first image of a split and a label."""
    (rows,) = np.nonzero((samples.split == split) & (samples.label == label))
    return Path(samples.items[rows[0]].file)


def copy_pixels(source: Path, target: Path) -> None:
    """The same pixels in other bytes: no hash of the file can tell."""
    Image.open(source).save(target, compress_level=1, pnginfo=None, optimize=False)
    assert source.read_bytes() != target.read_bytes()


def test_a_pixel_copy_in_fit_and_validation_ends_with_exit_code_3(study_file):
    """Whatever its bytes; the error names both files, the record is written all the same.

    The shift stage refuses it too, before any number.
    """
    samples, _ = load_samples(load_study(study_file))
    validation, fit = in_split(samples, "validation", 0), in_split(samples, "fit", 0)
    copy_pixels(fit, validation)
    run("features", study_file, *ENGINE)
    result = run("audit", study_file, "--no-shortcuts", code=3)
    assert "source fit and source validation: 1 identical image is in both" in result.stderr
    assert f"{fit.name} = source/a/{validation.name}" in result.stderr
    written = record_of(Path("results/tiny/audit.json"))
    assert written["results"][0]["severity"] == LEAK
    shown = run("audit", study_file, "--no-shortcuts", "--json", code=3).stdout
    assert json.loads(shown)["counts"][LEAK] == 1
    refused = run("shift", study_file, "--quick", code=3)
    assert "source fit and source validation: 1 identical image is in both" in refused.stderr
    assert not Path("results/tiny/shift.json").exists()


def test_an_audit_without_features_is_refused_before_any_work(study_file, monkeypatch):
    """Exit code 5 and the command to run, where all or some images have none."""

    def measured(*_):
        raise AssertionError("an image was measured")

    monkeypatch.setattr(MeasureIndex, "measure", measured)
    monkeypatch.setattr(stage_module, "extract", measured)
    for missing in (60, 4):
        refused = run("audit", study_file, *ENGINE, code=5)
        assert f"{missing} of " in refused.stderr
        assert "first run: headrace features" in refused.stderr
        run("features", study_file, *ENGINE)
        write_images(Path("there"), 4, seed=9)


def test_identical_files_of_source_and_target_are_listed_and_not_only_the_first_error(study_file):
    """An audit goes on where heads stop, and says the same with code 3.

    With --allow-leaks heads go on too, and warn above their table.
    """
    (image,) = list(Path("here/a").glob("p1000_0.png"))
    Path("there/a/p9000_0.png").write_bytes(image.read_bytes())
    study = load_study(study_file)
    extract(study, TORCH)
    with pytest.raises(CheckFailedError, match="1 image of a target is also in the source"):
        load_samples(study)
    report = audit(study, shortcuts=False)
    leaks = [f for f in report["results"] if f["severity"] == LEAK]
    assert [(f["check"], f["where"].split(" and ")[1]) for f in leaks] == [("overlap", "there")]
    text = "1 identical image is in both.*--write-exclude FILE.*--allow-leaks lets heads"
    with pytest.raises(CheckFailedError, match=text):
        refuse_leaks(CheckResult(**result) for result in report["results"])
    heads = ("heads", study_file, "--only", "prior", "--quick")
    assert "1 image of a target is also in the source" in run(*heads, code=3).stderr
    shown = run(*heads, "--allow-leaks").stdout
    assert shown.startswith("Do not trust these numbers. source ")
    assert "there: 1 identical image is in both" in shown


def test_warnings_are_said_once(study_file):
    """Each backbone gathers the samples anew, and each would say it of each domain."""
    text = study_file.read_text().replace("group = '^(p\\d+)'\n", "")
    study_file.write_text(text)
    run("features", study_file, *ENGINE)
    lines = run("audit", study_file, "--shortcuts", *ENGINE).stderr.splitlines()
    about = [line for line in lines if "because no `group` finds it" in line]
    assert [line.split(":")[1].strip() for line in about] == ["source", "there"]


def test_the_shortcut_tests_need_features_of_their_own(study_file):
    """They have their own stores; without them the audit says so and tests nothing."""
    study = load_study(study_file)
    extract(study, TORCH)
    results = {f["check"]: f for f in audit(study)["results"]}
    assert results["border"]["severity"] == results["corners"]["severity"] == NOTE
    assert "--shortcuts" in results["border"]["advice"]
    before = json.loads((study.results / "features.json").read_text())
    run("audit", study_file, *ENGINE)
    assert len(list(Path("features").glob("tiny-*"))) == 3
    assert json.loads((study.results / "features.json").read_text()) == before
    results = {f["check"]: f for f in audit(study)["results"]}
    assert "auc" in results["border"]["values"]


# Near duplicates.

#: Numbers of pictures that are in fit, and their copies in the target.
IN_FIT = (4, 6, 10)
COPIED = tuple(f"there/a/pt{k + 4:03}.png" for k in IN_FIT)


@pytest.fixture
def copied_study(tiny_folder):
    """Three copies of fit in the target."""
    kinds = ("scaled by 1/2", "recompressed", "mirrored")
    study_file = smooth_study(
        tiny_folder, [(k, k + 4, how) for k, how in zip(IN_FIT, kinds, strict=True)]
    )
    study = load_study(study_file)
    extract(study, TORCH)
    run("heads", study_file, "--only", "linear", "--quick")
    return study_file


def test_a_leak_of_near_duplicates_is_said_everywhere_and_can_be_left_out(copied_study):
    """By the audit's exit code, above the table of heads, by shift; and no more afterwards."""
    shown = run("audit", copied_study, "--no-shortcuts", "--write-exclude", "out.txt", code=3)
    assert "source fit and there: 3 near duplicates are in both" in shown.stderr
    assert shown.stdout.count("lists the images") == 1
    assert read_lines(Path("out.txt")) == COPIED
    with Image.open("results/smooth/near_duplicates.png") as sheet:
        assert sheet.width > 2 * (2 * SHEET_SIDE)
    heads = run("heads", copied_study, "--only", "linear", "--quick").stdout
    assert heads.startswith("Do not trust these numbers. source fit and there: 3 near duplicates")
    assert "3 near duplicates" in run("shift", copied_study, "--quick", code=3).stderr
    copied_study.write_text('exclude = "out.txt"\n' + copied_study.read_text())
    again = json.loads(run("audit", copied_study, "--no-shortcuts", "--json").stdout)
    assert (again["images"], again["counts"]["leak"]) == (197, 0)
    assert record_of(Path("results/smooth/audit.json")) == again
    assert again["leave_out"] == list(COPIED)
    assert not Path("results/smooth/near_duplicates.png").exists()
    assert "Do not trust" not in run("heads", copied_study, "--only", "linear", "--quick").stdout


def test_a_sheet_has_both_pictures_side_by_side():
    """Left and right picture keep their grey; a long line does not leave its column."""
    grey = [np.full((SHEET_SIDE, SHEET_SIDE, 3), level, np.uint8) for level in (40, 90)]
    data = draw_sheet([(grey, ("1.", "long " * 40))])
    sheet = np.asarray(Image.open(BytesIO(data)))
    assert (sheet[20, 20, 0], sheet[20, 20 + SHEET_SIDE, 0]) == (40, 90)
    assert (sheet[:, -10:] == 255).all()
