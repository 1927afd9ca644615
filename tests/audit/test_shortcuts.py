"""Shortcut tests: a planted marker is found, and what is not there is not."""

from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from PIL import Image

from pipeline.audit import shortcuts
from pipeline.audit.shortcuts import MASKED, ShortcutTest, mask_tests, results_of
from pipeline.audit.stage import audit, masked_study
from pipeline.data.images import Transform
from pipeline.data.index import MEASURES
from pipeline.data.leaks import NOTE, OK, WARNING
from pipeline.data.samples import load_samples
from pipeline.demo import Hospital, Patient, chest, expose
from pipeline.evaluation.intervals import Interval
from pipeline.evaluation.separability import Separability
from pipeline.features import backbones
from pipeline.features.extract import extract
from pipeline.features.load import FeatureTable, load_features
from pipeline.study_file import load_study
from tests.tiny import TORCH, FileWeights


def marker_network(state):
    """A few random filters, the strongest answer of each quarter: sees a marker, no disease."""
    import torch
    from torch import nn

    network = nn.Sequential(
        nn.Conv2d(3, 12, 4, stride=2), nn.ReLU(), nn.AdaptiveMaxPool2d(2), nn.Flatten(1)
    )
    network.load_state_dict({k: torch.as_tensor(v) for k, v in state.items()})
    return network


@pytest.fixture
def marker_backbone(tmp_path, monkeypatch):
    """Put the backbone ``marks`` into the table."""
    import torch

    rng = torch.Generator().manual_seed(1)
    file = tmp_path / "marks.pth"
    torch.save(
        {"0.weight": torch.randn(12, 3, 4, 4, generator=rng), "0.bias": torch.ones(12)}, file
    )
    spec = backbones.Spec(
        dim=48,
        transform=Transform(size=64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        network=marker_network,
        pretrained=FileWeights(file),
    )
    table = MappingProxyType({**backbones.BACKBONES, "marks": spec})
    monkeypatch.setattr(backbones, "BACKBONES", table)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def films():
    """Films of 100 healthy phantoms, each without and with a marker.

    Healthy, because an opacity low in the lung does reach the corners of a film.
    """
    patients = [Patient(name=f"p{i}", label="normal") for i in range(100)]
    chests = [(patient, chest(patient)) for patient in patients]
    return [
        [expose(drawn, p, Hospital(marker_normal=m), size=112) for m in (0.0, 1.0)]
        for p, drawn in chests
    ]


def audited_phantoms(name, films, *, marker):
    """A study of films with drawn labels; with ``marker`` all of class b have one.

    Returns:
        The study, and the results of its source by check.
    """
    rng, folder = np.random.default_rng(0), Path(name)
    for i, label in enumerate(rng.permutation(np.repeat(["a", "b"], 50))):
        file = folder / "here" / label / f"p{i:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(films[i][marker and label == "b"]).save(file)
    text = "[source]\npath = 'here'\ngroup = 'p...'\n[backbone.marks]\n[store]\npath = 'features'\n"
    (folder / "study.toml").write_text(f"name = '{name}'\n{text}")
    study = load_study(folder / "study.toml")
    extract(study, TORCH)
    extract(masked_study(study), TORCH)
    return study, {f["check"]: f for f in audit(study)["results"] if f["where"] == "source"}


def test_a_planted_marker_is_found_in_the_corners_and_at_the_border(marker_backbone, films):
    """The corners alone predict the label, and so does the picture without its centre."""
    _, results = audited_phantoms("marked", films, marker=True)
    for check in ("corners", "border"):
        assert results[check]["values"]["auc"]["estimate"] > 0.95, check
        assert results[check]["severity"] == WARNING


def test_without_a_marker_corners_and_border_predict_nothing(marker_backbone, films):
    """The intervals cover one half, and no warning; so do those of most other labels."""
    study, results = audited_phantoms("unmarked", films, marker=False)
    samples, _ = load_samples(study)
    rng = np.random.default_rng(3)
    for choice in masked_study(study).backbones:
        check, table = MASKED[choice.mask][0], load_features(study, choice, samples)
        auc = results[check]["values"]["auc"]
        assert results[check]["severity"] == OK
        assert auc["low"] < 0.5 < auc["high"]
        drawn = []
        for _ in range(20):
            relabelled = replace(table.samples, label=rng.permutation(table.samples.label))
            drawn += [asdict(t().result.auc) for t in mask_tests(relabelled, table.X, choice.mask)]
        # Fewer than 17 of 20 would be seen in 0.3 % of runs if 95 % cover.
        covered = sum(auc["low"] < 0.5 < auc["high"] for auc in drawn)
        assert covered >= 17, (choice.mask, covered)
        assert abs(np.mean([auc["estimate"] for auc in drawn]) - 0.5) < 0.05


def test_what_few_patients_cannot_show_is_no_warning(study_file):
    """Three images can always be separated from 40 by something: a note that they are few."""
    for kind, keep in (("a", 2), ("b", 1)):
        for image in sorted(Path("there", kind).iterdir())[keep:]:
            image.unlink()
    study = load_study(study_file)
    study = replace(study, targets=(replace(study.targets[0], group=None),))
    samples, _ = load_samples(study)
    is_target = samples.domain == "there"
    apart = np.random.default_rng(0).normal(size=(len(samples), 2)) + 4 * is_target[:, None]
    table = FeatureTable(
        backbone="tiny", stores=(), widths=(2,), samples=samples, X=apart.astype(np.float32)
    )
    (domain,) = results_of([test() for test in shortcuts.domain_tests(table)])
    measures = np.zeros(len(samples), MEASURES)
    measures["height"] = measures["width"] = measures["file_bytes"] = 40
    measures["mean"] = apart[:, 0]
    *_, stored = results_of([test() for test in shortcuts.measure_tests(samples, measures)])
    for result in (domain, stored):
        assert result.where == "source and there"
        assert result.values["auc"]["estimate"] > 0.9
        assert (result.severity, result.advice) == (NOTE, "")
        assert result.text.startswith("there are too few patients to say whether")
    assert "too few patients to say whether the domain can be predicted" in stored.text


def judged(values, others=0, **given):
    """The result of one test, beside others that found nothing."""

    def test(auc, low, end, p, **given):
        interval = Interval(
            estimate=auc, low=low, high=end, images=200, patients=200, method="permutation"
        )
        result = Separability(auc=interval, p=p)
        return ShortcutTest(
            check="border", where="x", hypothesis="it shows", result=result, **given
        )

    result, *_ = results_of([test(*values, **given)] + others * [test(0.5, 0.4, 0.6, 0.5)])
    return result


@pytest.mark.parametrize(
    ("values", "given", "severity", "text"),
    [
        ((0.8, 0.75, 0.85, 0.002), {}, WARNING, "it shows: AUC 0.80 (0.75 to 0.85)"),
        ((0.8, 0.75, 0.85, 0.002), {"high": 0.9}, NOTE, "it shows: AUC 0.80 (0.75 to 0.85)"),
        ((0.8, 0.75, 0.85, 0.002), {"expected": "as planned"}, NOTE, "it shows: AUC"),
        ((0.65, 0.52, 0.7, 0.01), {"others": 5}, OK, "it is not shown that it shows: AUC 0.65"),
        ((0.55, 0.45, 0.65, 0.2), {}, OK, "there is no sign that it shows: AUC 0.55"),
        (
            (0.8, 0.4, 0.95, 0.06), {}, NOTE,
            "there are too few patients to say whether it shows: AUC 0.80",
        ),
    ],
)  # fmt: skip
def test_no_sentence_contradicts_its_interval(values, given, severity, text):
    """What is shown is said, what is strong is a warning; p is adjusted over all tests."""
    result = judged(values, **given)
    assert result.severity == severity
    assert result.text.startswith(text)
    assert bool(result.advice) == (severity == WARNING)
    if "others" in given:
        assert result.text.endswith("p 0.06, adjusted for 6 tests")


@pytest.mark.parametrize("tests", [1, 12, 28, 100])
def test_an_audit_of_many_tests_can_still_warn(tests):
    """The smallest p that permutations give is below 5 % after the adjustment for all."""
    draws = shortcuts.with_permutations([lambda draws: draws] * tests)[0]()
    values = (0.99, 0.98, 1.0, 1 / (draws + 1))
    assert judged(values, others=tests - 1).severity == WARNING


def test_classes_that_are_parts_of_the_body_may_show_in_the_border(study_file):
    """Their whole pictures differ: a note that says so."""
    samples, _ = load_samples(load_study(study_file))
    group = np.arange(len(samples)).astype(str)
    samples = replace(samples, classes=("hand", "chest x-ray"), group=group)
    signal = np.where(samples.labelled, samples.label, 0)[:, None] + 0.01 * np.arange(3)
    result, *_ = results_of([test() for test in mask_tests(samples, signal, "centre")])
    assert result.severity == NOTE
    assert result.text.endswith("expected of classes that are parts of the body")
