"""Stage 4 with few patients: what goes through, and what is refused in words."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import StudyError
from pipeline.features.load import FeatureTable, load_features
from pipeline.shift import stage
from pipeline.shift.known import source_of
from pipeline.shift.stage import ShiftOptions, analyse
from pipeline.study import load_study
from tests.tiny import stored_tiny_study

SHORT = ShiftOptions(draws=99, seeds=2)


@pytest.fixture
def study(tmp_path: Path, monkeypatch):
    """Eighty images a domain, features stored."""
    return load_study(stored_tiny_study(tmp_path, monkeypatch, source=80, target=80))


def few_in(domain: str, patients: dict[int, int], joined: FeatureTable) -> FeatureTable:
    """Of a domain, one image of each of so many patients by class; all of the other domain."""
    samples = joined.samples
    kinds = np.array([int(item.path.startswith("b")) for item in samples.items])
    stay = samples.domain != domain
    for k, count in patients.items():
        stay[np.flatnonzero((samples.domain == domain) & (kinds == k))[:count]] = True
    alone = np.array([item.path for item in samples.items])
    group = np.where(samples.domain == domain, alone, samples.group)
    kept = replace(samples, group=group).where(stay)
    return replace(joined, samples=kept, X=joined.X[stay])


def analyse_few(study, monkeypatch, domain: str, patients: dict[int, int]):
    """Stage 4 on what :func:`few_in` leaves."""
    monkeypatch.setattr(
        stage, "load_features", lambda *given: few_in(domain, patients, load_features(*given))
    )
    return analyse(study, SHORT)


@pytest.mark.parametrize(
    ("patients", "labels"),
    [(2, "sealed"), (2, "open"), (2, "absent"), (3, "open"), (3, "absent"), (4, "sealed")],
)
def test_a_target_of_a_few_patients_goes_through(study, monkeypatch, patients, labels):
    """Two patients are enough for every step, whether their labels are known or not."""
    (there,) = study.targets
    asked = replace(study, targets=(replace(there, labels=labels),))
    counts = {0: patients - patients // 2, 1: patients // 2}
    report = analyse_few(asked, monkeypatch, "there", counts)
    assert len(report.unlabelled if labels == "absent" else report.targets) == 1
    assert not report.not_compared
    if report.targets:  # of so few there are none to learn from
        assert not report.targets[0].adaptation.label_curve


@pytest.mark.parametrize("patients", [2, 3])
def test_a_source_class_of_a_few_patients_goes_through(study, monkeypatch, patients):
    """Two patients of a class are enough: folds, bootstraps and controls keep the class."""
    report = analyse_few(study, monkeypatch, "source", {0: 30, 1: patients})
    (target,) = report.targets
    for row in target.adaptation.rows:
        assert 0 <= row.accuracy <= 1


def test_a_source_class_of_one_patient_is_named_before_any_fit(study):
    """The class by its name, its patients, how many are needed, what to do."""
    (choice,) = study.variants
    few = few_in("source", {0: 30, 1: 1}, load_features(study, choice))
    with pytest.raises(
        StudyError,
        match=r"class 'b' of \[source\] has images of 1 patient, and 2 are needed: .* Add images",
    ):
        source_of(few)
