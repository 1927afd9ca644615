"""A study: where its store is, and the same study with other backbones."""

from dataclasses import replace
from pathlib import Path

from pipeline.study import BackboneChoice, SourceDomain, Study

STUDY = Study(
    name="chest",
    source=SourceDomain(path=Path("a")),
    backbones=(BackboneChoice(name="densenet121"), BackboneChoice(name="googlenet")),
)


def test_the_store_is_the_studys_then_the_environments_then_features(monkeypatch):
    """Three places, in that order."""
    monkeypatch.delenv("HEADRACE_FEATURES", raising=False)
    assert STUDY.store_root == Path("features")
    monkeypatch.setenv("HEADRACE_FEATURES", "/big/disk")
    assert STUDY.store_root == Path("/big/disk")
    assert replace(STUDY, store=Path("elsewhere")).store_root == Path("elsewhere")


def test_a_flag_replaces_a_setting_of_all_backbones():
    """One that is not given leaves the study as it is."""
    changed = STUDY.with_recipe(precision="bf16", decode="gpu").backbones[1]
    assert (changed.precision, changed.decode) == ("bf16", "gpu")
    assert STUDY.with_recipe(precision=None) == STUDY
