"""Heads and concatenations of backbones that a study file adds."""

import pytest

from pipeline.errors import StudyError
from pipeline.heads import all_heads
from pipeline.study import CustomHead, load_study
from tests.heads.made_up_rows import made_up_rows

CLASS = "sklearn.neighbors.KNeighborsClassifier"
GOOD = """
[source]
path = "."
[backbone.densenet121]
[backbone.googlenet]
[backbone."densenet121+googlenet"]
[head.near]
estimator = "sklearn.neighbors.KNeighborsClassifier"
n_neighbors = 7
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
    added = table["near"].make(0)
    assert added.n_neighbors == 7
    assert added.fit(rows.features, rows.label).score(rows.features, rows.label) > 0.9


def test_a_parameter_that_is_given_is_not_searched_for():
    """The grid of the base loses it."""
    (head,) = (CustomHead(name="strict", base="linear", parameters={"C": 0.001}),)
    spec = all_heads((head,))["strict"]
    assert not spec.grid
    assert spec.make(0).C == 0.001


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("n_neighbors", "k"), r"unknown parameter 'k' in \[head.near\]; allowed: .*n_neighbors"),
        ((CLASS, "os.path.join"), r"allowed is sklearn.MODULE.CLASS"),
        ((CLASS, "sklearn.svm._classes.SVC"), r"allowed is sklearn.MODULE"),
        ((CLASS, "sklearn.neighbors.KNeighborsRegressor"), r"is no classifier of scikit-learn"),
        ((CLASS, "sklearn.neighbors.None"), r"scikit-learn has none"),
        ((CLASS, "sklearn.ensemble.VotingClassifier"), r"unknown parameter 'n_neighbors'"),
        ((f'{CLASS}"\nn_neighbors = 7', 'sklearn.svm.LinearSVC"'), r"gives no probabilities"),
        (("head.near", "head.svm"), r"\[head.svm\]: the name is taken"),
        (('base = "mlp"', 'base = "lstm"'), r"unknown base 'lstm'; known: mlp"),
        (('base = "mlp"', ""), r"write either estimator"),
        (("hidden = 8", "hiden = 8"), r"unknown parameter 'hiden' .* hidden"),
        (('"densenet121+googlenet"', '"densenet121+resnet50"'), r"must stand once"),
        (('"densenet121+googlenet"', '"densenet121+densenet121"'), r"must stand once"),
    ],
)
def test_a_mistake_is_refused_with_what_is_allowed(tmp_path, change, sentence):
    """Before any work of the stage."""
    text = GOOD.replace(*change)
    assert text != GOOD
    with pytest.raises(StudyError, match=sentence):
        all_heads(load_study(write(tmp_path, text)).heads)
