"""Heads and concatenations of backbones that a study file adds."""

import numpy as np
import pytest

from pipeline.errors import StudyError
from pipeline.heads import all_heads
from pipeline.study import CustomHead, load_study
from tests.heads.made_up_rows import made_up_rows

GOOD = """
[source]
path = "."
[backbone.densenet121]
[backbone.googlenet]
[backbone."densenet121+googlenet"]
[head.my_svm]
estimator = "sklearn.svm.NuSVC"
nu = 0.3
[head.small]
base = "mlp"
hidden = 8
"""


def write(folder, text):
    file = folder / "study.toml"
    file.write_text(text)
    return file


def test_a_study_adds_heads_and_concatenations(tmp_path):
    """The networks stay what stage 1 runs; later stages see the concatenation too."""
    study = load_study(write(tmp_path, GOOD))
    assert [b.name for b in study.backbones] == ["densenet121", "googlenet"]
    assert study.variants[-1].name == "densenet121+googlenet"
    assert study.parts_of(study.variants[-1]) == list(study.backbones)
    table = all_heads(study.heads)
    assert table["small"].make(0).hidden == 8
    rows = made_up_rows()
    svm = table["my_svm"].make(0)
    assert svm.estimator.nu == 0.3
    svm.fit(rows.features, rows.label, groups=rows.group)
    assert svm.score(rows.features, rows.label) > 0.9
    np.testing.assert_allclose(svm.predict_proba(rows.features).sum(1), 1)


def test_a_parameter_that_is_given_is_not_searched_for():
    """The grid of the base loses it."""
    (head,) = (CustomHead(name="strict", base="linear", parameters={"C": 0.001}),)
    spec = all_heads((head,))["strict"]
    assert not spec.grid
    assert spec.make(0).C == 0.001


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("nu = 0.3", "mu = 0.3"), r"unknown parameter 'mu' in \[head.my_svm\]; allowed: .*nu"),
        (("sklearn.svm.NuSVC", "os.path.join"), r"allowed is sklearn.MODULE.CLASS"),
        (("sklearn.svm.NuSVC", "sklearn.svm._classes.NuSVC"), r"allowed is sklearn.MODULE"),
        (("sklearn.svm.NuSVC", "sklearn.svm.SVR"), r"is no classifier of scikit-learn"),
        (("sklearn.svm.NuSVC", "sklearn.svm.NoSVC"), r"scikit-learn has none"),
        (("sklearn.svm.NuSVC", "sklearn.ensemble.VotingClassifier"), r"unknown parameter 'nu'"),
        (("my_svm", "svm"), r"\[head.svm\]: the name is taken"),
        (('base = "mlp"', 'base = "lstm"'), r"unknown base 'lstm'; known: mlp"),
        (('base = "mlp"', ""), r"write either estimator"),
        (("hidden = 8", "hiden = 8"), r"unknown parameter 'hiden' .* hidden"),
        (('"densenet121+googlenet"', '"densenet121+resnet50"'), r"'resnet50' must stand once"),
        (('"densenet121+googlenet"', '"densenet121+densenet121"'), r"must stand once"),
    ],
)
def test_a_mistake_is_refused_with_what_is_allowed(tmp_path, change, sentence):
    """Before any work of the stage."""
    text = GOOD.replace(*change)
    assert text != GOOD
    with pytest.raises(StudyError, match=sentence):
        all_heads(load_study(write(tmp_path, text)).heads)


def test_a_base_of_the_same_name_is_no_way_round_the_table():
    """Also where no file was read."""
    with pytest.raises(StudyError, match="the name is taken"):
        all_heads((CustomHead(name="mlp", base="mlp"),))
