"""Heads, treatments and concatenations that a study file or the command line asks for."""

import numpy as np
import pytest

from pipeline.errors import StudyError
from pipeline.heads.custom import heads_with
from pipeline.heads.preprocessing import TREATMENTS, make_treatment, untreated
from pipeline.heads.search import Problem, train_head
from pipeline.study import CustomHead, load_study

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


def data(n=60):
    rng = np.random.default_rng(0)
    y = np.arange(n) % 2
    X = (rng.normal(size=(n, 5)) + 2 * np.eye(2, 5)[y]).astype(np.float32)
    return Problem(
        X=untreated(X), y=y, group=np.array([str(i // 2) for i in range(n)]), seeds=(0, 1)
    )


def test_a_study_adds_heads_and_concatenations(tmp_path):
    """The networks stay what stage 1 runs; later stages see the concatenation too."""
    study = load_study(write(tmp_path, GOOD))
    assert [b.name for b in study.backbones] == ["densenet121", "googlenet"]
    assert study.variants[-1].name == "densenet121+googlenet"
    assert study.parts_of(study.variants[-1]) == list(study.backbones)
    table = heads_with(study.heads)
    svm = train_head("my_svm", data(), table)[0]
    assert svm.estimator_.nu == 0.3
    np.testing.assert_allclose(svm.predict_proba(data().X[:]).sum(1), 1)
    assert [head.hidden for head in train_head("small", data(), table)] == [8, 8]


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
    """Before any work, with the file's name."""
    text = GOOD.replace(*change)
    assert text != GOOD
    with pytest.raises(StudyError, match=rf"study.toml: .*{sentence}"):
        load_study(write(tmp_path, text))


def test_a_base_of_the_same_name_is_no_way_round_the_table():
    """Also where no file was read."""
    with pytest.raises(StudyError, match="the name is taken"):
        heads_with((CustomHead(name="mlp", base="mlp"),))


@pytest.mark.parametrize("name", TREATMENTS)
@pytest.mark.parametrize("widths", [(8,), (3, 5)])
def test_a_treatment_keeps_rows_apart_and_the_input_as_it_is(name, widths):
    """Row order, finite numbers; a row is treated alone as in company."""
    X = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    before = X.copy()
    fitted = make_treatment(name, widths).fit(X)
    found = fitted.transform(X)
    np.testing.assert_array_equal(X, before)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(fitted.transform(X[3:5]), found[3:5], atol=1e-5)


def test_treatments_do_what_they_say():
    """Unit variance, unit length, uncorrelated; blocks of two backbones weigh the same."""
    X = np.random.default_rng(0).normal(size=(200, 8)) @ np.diag([1, 1, 1, 50, 50, 50, 50, 9])
    X = X.astype(np.float32)
    treated = {n: make_treatment(n, (3, 5)).fit_transform(X) for n in TREATMENTS}
    np.testing.assert_allclose(treated["standardise"].std(0), 1, rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(treated["l2"], axis=1), 1, rtol=1e-4)
    white = np.cov(treated["pca_whiten"].T)
    np.testing.assert_allclose(white, np.eye(len(white)), atol=1e-3)
    variance = treated["none"].var(0)
    assert variance[:3].mean() == pytest.approx(variance[3:].mean(), rel=1e-3)
    np.testing.assert_array_equal(make_treatment("none", (8,)).fit_transform(X), X)
