"""Stage 1: what is missing is computed once, what is bad never stored, a kill costs a commit."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pipeline.features.extract as extract_module
import pipeline.features.guard as guard_module
from cache import disk
from cache.errors import CanaryError
from cache.store import FeatureStore
from pipeline.audit.stage import audit
from pipeline.data.images import Transform
from pipeline.data.samples import load_samples
from pipeline.errors import EngineError, PartialFailureError, StudyError, WeightsError
from pipeline.features.extract import extract
from pipeline.features.guard import FeatureGuard
from pipeline.features.load import load_features, store_for
from pipeline.study_file import load_study
from tests.tiny import TORCH, edited, write_images


@pytest.fixture
def builds(monkeypatch) -> list[str]:
    """Names of the networks that are built to be run."""
    made = []
    real = extract_module.frozen_network
    monkeypatch.setattr(
        extract_module, "frozen_network", lambda *a, **k: made.append(a[0].name) or real(*a, **k)
    )
    return made


def counts(report) -> tuple[int, int, int, int]:
    row = report["backbones"][0]
    total, *counts = (row[n] for n in ("images_in", "computed", "reused", "skipped"))
    assert total == sum(counts)
    return total, *counts


def test_layers_and_the_network_itself_come_from_one_pass(study_file, builds):
    """Each has a store of its own, and only what some of them lack is computed."""
    layers = '[backbone.tiny]\nlayers = ["0", "1"]\n'
    study = edited(study_file, {"[backbone.tiny]\n": layers})
    report = extract(study, TORCH)
    assert builds == ["tiny@0"]
    found = [(row["backbone"], row["computed"]) for row in report["backbones"]]
    assert found == [("tiny@0", 60), ("tiny@1", 60)]
    samples, _ = load_samples(study)
    tables = [load_features(study, choice, samples) for choice in study.variants.values()]
    np.testing.assert_array_equal(tables[2].X, np.hstack([tables[0].X, tables[1].X]))
    apart = '[backbone.tiny]\n[backbone."tiny@0"]\n[backbone."tiny@1"]\n'
    report = extract(edited(study_file, {layers: apart}), TORCH)
    assert [row["computed"] for row in report["backbones"]] == [60, 0, 0]
    plain = load_features(study, study.backbones[0].network, samples).X
    np.testing.assert_allclose(tables[1].X, plain, rtol=1e-6)  # it is pooled last anyway
    assert (plain > tables[0].X).any()  # before the ReLU


def lost_backbone(study_file, more):
    """The study with a backbone whose file holds no weights, and more lines."""
    Path("lost.pth").write_bytes(b"no weights")
    lost = '[backbone.densenet121]\nweights = "lost.pth"'
    return edited(study_file, {"[backbone.tiny]": f"[backbone.tiny]\n{lost}\n{more}"})


def test_a_backbone_that_fails_does_not_cost_the_others(study_file, builds, monkeypatch):
    """Of three, one has no weights and one an engine that breaks; at the end the command fails."""
    study = lost_backbone(study_file, '[backbone."tiny@0"]')
    real = extract_module.frozen_network

    def broken(choice, *given, **named):
        if choice.name == "tiny@0":
            raise EngineError("the engine broke")
        return real(choice, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(extract_module, "frozen_network", broken)
        patch.setattr(extract_module, "replace", lambda choice, **_: choice)  # one pass for each
        failures = r"\.densenet121: .*lost\.pth.*; backbone\.tiny@0: the engine b"
        with pytest.raises(PartialFailureError, match=failures):
            extract(study, TORCH)
    assert len(store_for(study.store_root, study.backbones[0])) == 60
    (row,) = json.loads((study.results / "features.json").read_text())["backbones"]
    assert (row["backbone"], row["computed"]) == ("tiny", 60)
    with pytest.raises(WeightsError, match=r"lost\.pth"):
        extract(replace(study, backbones=study.backbones[1:2]), TORCH)


def test_a_target_and_a_backbone_of_one_name_fail_each_for_itself(study_file):
    """Neither reason takes the place of the other, here and in the audit."""
    study = lost_backbone(study_file, '[target.densenet121]\npath = "gone"')
    with pytest.raises(PartialFailureError) as error:
        extract(study, TORCH)
    assert {*error.value.record["failures"]} == {"target.densenet121", "backbone.densenet121"}
    results = audit(study, shortcuts=False)["results"]
    texts = [f["text"] for f in results if f["where"] == "densenet121"]
    assert sorted("gone" in text for text in texts) == [False, True]


def test_moving_copying_and_relabelling_cost_nothing(study_file, builds):
    """The key is the content; labels are not in the store. Of copies both rows are counted."""
    study = load_study(study_file)
    assert counts(extract(study, TORCH)) == (60, 60, 0, 0)
    min(Path("here/a").iterdir()).rename("here/b/p1000_moved.png")
    shutil.copy("here/b/p1000_moved.png", "here/b/p1000_copy.png")
    assert counts(extract(study, TORCH)) == (61, 0, 61, 0)
    assert len(store_for(study.store_root, study.backbones[0])) == 60
    assert builds == ["tiny"]


def test_the_features_are_those_of_the_image(study_file):
    """The row under a file's key is what the network says of its pixels."""
    study = load_study(study_file)
    extract(study, TORCH)
    file = min(Path("here/a").iterdir())
    pixels = np.asarray(Image.open(file).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))
    network = extract_module.frozen_network(study.backbones[0])
    expected = network(torch.from_numpy(pixels.copy())[None]).numpy()
    key = hashlib.sha256(file.read_bytes()).digest()
    found = store_for(study.store_root, study.backbones[0]).read([key])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_bad_images_are_counted_with_their_reason(study_file, builds):
    """Damaged, empty, black or transparent: named, not stored, and no model is built for them."""
    folder = Path("here/a")
    good = min(folder.iterdir()).read_bytes()
    (folder / "p1_text.png").write_text("<html>not found</html>")
    (folder / "p1_short.png").write_bytes(good[: len(good) // 2])
    (folder / "p1_empty.png").write_bytes(b"")
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(folder / "p1_black.png")
    clear = np.random.default_rng(0).integers(0, 256, (40, 40, 4), np.uint8)
    clear[..., 3] = 0
    Image.fromarray(clear).save(folder / "p1_clear.png")
    study = load_study(study_file)
    report = extract(study, TORCH)
    assert counts(report) == (65, 60, 0, 5)
    reasons = {skip["path"][5:-4]: skip["reason"] for skip in report["skipped"]}
    assert set(reasons) == {"text", "short", "empty", "black", "clear"}
    assert "empty" in reasons["empty"]
    assert reasons["black"] == reasons["clear"] == "all pixels have one colour"
    assert json.loads((study.results / "features.json").read_text())["skipped"] == report["skipped"]
    assert counts(extract(study, TORCH)) == (65, 0, 60, 5)
    assert builds == ["tiny"]


def test_many_pictures_of_one_colour_stop_the_run(study_file, monkeypatch):
    """More than 1 %: an export went wrong. What could be computed is stored."""
    for level in range(3):
        Image.fromarray(np.full((40, 40), level, np.uint8)).save(f"here/a/p1_{level}.png")
    study = load_study(study_file)
    with pytest.raises(StudyError, match=r"3 of 63 images show one colour only, .* a/p1_0\.png"):
        extract(study, TORCH)
    assert len(store_for(study.store_root, study.backbones[0])) == 60
    # Of fewer, a second run misses these alone, and they are no more than they were.
    monkeypatch.setattr(guard_module, "_SHARE_CONSTANT", 0.1)
    assert len(extract(study, TORCH)["skipped"]) == 3


def test_a_dead_backbone_stops_the_run():
    """More than one row in a hundred equal to another image's, or none at all."""
    guard = FeatureGuard(Transform())
    with pytest.raises(EngineError, match="the backbone does not work"):
        for _ in range(50):
            guard.defect(np.ones(4, np.float32))
    with pytest.raises(EngineError, match="not finite or all zero"):
        for value in [np.nan, np.inf, 0.0] * 20:
            assert "feature" in guard.defect(np.full(4, value, np.float32))
    guard = FeatureGuard(Transform())
    for i in range(30):  # ten copies of one picture in a small set are no dead backbone
        row = np.full(4, 1.0 if i < 11 else i + 2.0, np.float32)
        assert guard.defect(row) is None


def test_what_the_images_waited_for_is_said_at_the_end(study_file, caplog):
    """The shares are of the whole time; the largest is called the limit."""
    caplog.set_level("INFO")
    extract(load_study(study_file), TORCH)
    (line,) = [text for text in caplog.messages if "slowest:" in text]
    shares = {name: int(n) for name, n in re.findall(r"(\w+) (\d+)%", line)}
    assert list(shares) == ["starting", "decoding", "network", "writing"]
    assert 97 <= sum(shares.values()) <= 103
    assert line.endswith(f"slowest: {max(shares, key=shares.get)}")


def test_a_network_that_says_something_else_is_not_mixed_in(study_file, monkeypatch):
    """The canaries catch what the recipe cannot see."""
    study = load_study(study_file)
    extract(study, TORCH)
    write_images(Path("there"), 4, seed=9)
    real = extract_module.canary_features
    monkeypatch.setattr(extract_module, "canary_features", lambda *a: real(*a) * np.float32(1.001))
    with pytest.raises(CanaryError, match="relative L2, allowed 1e-04") as error:
        extract(study, TORCH)
    assert error.value.exit_code == 3


def test_an_interrupt_keeps_what_was_computed(study_file, monkeypatch):
    """Ctrl-C commits the buffer; the next run computes only the rest."""
    study = load_study(study_file)
    real = extract_module.StoreFiller.write

    def interrupted(self, batches, *given):
        def until_then():
            yield from islice(batches, 6)
            raise KeyboardInterrupt

        return real(self, until_then(), *given)

    with monkeypatch.context() as patch:
        patch.setattr(extract_module.StoreFiller, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract(study, TORCH)
    assert counts(extract(study, TORCH)) == (60, 36, 24, 0)


#: Three parts of which the second gets no name: the process stops there.
KILLED = """
import sys, time, pytest
from pathlib import Path
import cache.disk as d, cache.store as s
from pipeline.features.extract import extract
from pipeline.study_file import load_study
from tests.tiny import TORCH, install_tiny_backbone
patch, parts, real = pytest.MonkeyPatch(), [], d.replace
def replace(a, b):
    parts.extend([b] if b.name.startswith("part-") else [])
    if len(sys.argv) > 1 and len(parts) == 2:
        print("half", flush=True)
        time.sleep(60)
    real(a, b)
patch.setattr(s, "ROWS_PER_COMMIT", 128)
patch.setattr(d, "replace", replace)
install_tiny_backbone(patch, Path())
extract(load_study(Path("study.toml")), TORCH)
"""


def test_kill_dash_nine_costs_at_most_one_commit(tmp_path):
    """A killed process leaves whole parts; the next run goes on from them."""
    write_images(tmp_path / "here", 300, seed=1)
    (tmp_path / "study.toml").write_text(
        'name = "killed"\n[source]\npath = "here"\n[store]\npath = "features"\n[backbone.tiny]\n'
    )
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "PYTHONWARNINGS": "ignore"}
    command, given = [sys.executable, "-c", KILLED], {"cwd": tmp_path, "env": environment}
    child = subprocess.Popen([*command, "stop"], stdout=subprocess.PIPE, **given)
    assert child.stdout.readline() == b"half\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    folder = next(p for p in (tmp_path / "features").iterdir() if p.name.startswith("tiny"))
    assert len(FeatureStore.open(folder)) >= 128
    assert [n for n in disk.listdir(folder) if n.startswith(disk.TEMPORARY)]
    subprocess.run(command, check=True, capture_output=True, **given)
    assert len(FeatureStore.open(folder)) == 300
    report = json.loads((tmp_path / "results" / "killed" / "features.json").read_text())
    assert report["backbones"][0]["computed"] <= 300 - 128
    assert not [n for n in disk.listdir(folder) if n.startswith(disk.TEMPORARY)]
