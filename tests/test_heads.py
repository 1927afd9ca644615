"""Every head keeps the same contract; the table is what the tests run over."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

from pipeline.compare import Plan, fit_all
from pipeline.data.samples import Samples
from pipeline.errors import UnknownNameError
from pipeline.features.load import FeatureTable
from pipeline.heads import HEADS, make_head
from pipeline.heads.mlp import MLPHead
from pipeline.heads.preprocessing import TREATMENTS, label_of, untreated
from pipeline.heads.search import Problem, train_head


def problem(classes: int = 2, n: int = 120, d: int = 8):
    rng = np.random.default_rng(0)
    y = np.arange(n) % classes
    X = rng.normal(size=(n, d)) + 3 * np.eye(classes, d)[y]
    return X.astype(np.float32), y


@pytest.fixture(params=[2, 3], ids=["two classes", "three classes"])
def data(request):
    return problem(request.param)


@pytest.mark.parametrize("name", HEADS)
def test_probabilities_are_probabilities(name, data):
    """Shape (n, K), not negative, sum 1, and the best class is what predict says."""
    X, y = data
    head = make_head(name, seed=0).fit(X, y)
    p = head.predict_proba(X)
    assert p.shape == (len(X), len(set(y)))
    assert (p >= 0).all()
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-6)
    if name != "svm":  # its calibrated probability and its margin may disagree near 0.5
        np.testing.assert_array_equal(head.classes_[p.argmax(1)], head.predict(X))


@pytest.mark.parametrize("name", [n for n in HEADS if n != "prior"])
def test_a_head_learns_what_can_be_learnt(name, data):
    """Well separated classes are told apart; the majority class alone would not do."""
    X, y = data
    assert make_head(name, seed=0).fit(X, y).score(X, y) > 0.9


@pytest.mark.parametrize("name", HEADS)
def test_the_same_seed_gives_the_same_head(name, data):
    """Bit for bit, also after clone."""
    X, y = data
    first = make_head(name, seed=3)
    one = first.fit(X, y).predict_proba(X)
    two = clone(first).fit(X, y).predict_proba(X)
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", HEADS)
def test_rows_keep_their_order_and_the_input_is_not_touched(name):
    """Float32 in, answered row by row whatever stands beside them."""
    X, y = problem()
    before = X.copy()
    head = make_head(name, seed=0).fit(X, y)
    p = head.predict_proba(X)
    np.testing.assert_array_equal(X, before)
    np.testing.assert_allclose(head.predict_proba(X[::-1].copy())[::-1], p, atol=1e-6)


@pytest.mark.parametrize("name", [n for n, spec in HEADS.items() if spec.grouped])
def test_a_head_that_holds_rows_out_takes_the_patients(name):
    """``grouped`` says the truth, and patients are accepted as text."""
    X, y = problem()
    groups = np.array([f"p{i // 3}" for i in range(len(X))])
    assert make_head(name, seed=0).fit(X, y, groups=groups).score(X, y) > 0.9


@pytest.mark.parametrize("name", [n for n, spec in HEADS.items() if spec.seeded])
def test_another_seed_gives_another_head(name):
    """``seeded`` says the truth."""
    X, y = problem(n=60)
    p = [make_head(name, seed=s).fit(X[:40], y[:40]).predict_proba(X) for s in (0, 1)]
    assert (p[0] != p[1]).any()


@pytest.mark.parametrize("name", [n for n in HEADS if n != "prior"])
def test_features_of_another_width_are_refused(name):
    """Never broadcast, never guessed."""
    X, y = problem()
    head = make_head(name, seed=0).fit(X, y)
    with pytest.raises(ValueError, match="features"):
        head.predict_proba(X[:, :5])


@pytest.mark.parametrize("name", HEADS)
def test_the_grid_names_real_parameters(name):
    """A misspelt grid would choose between equal heads."""
    head = make_head(name, seed=0)
    assert set(HEADS[name].grid) <= set(head.get_params())


def test_an_unknown_head_lists_the_table():
    """The message is built from HEADS."""
    with pytest.raises(
        UnknownNameError, match="unknown head 'lstm'; known: mlp, linear, ridge, lda"
    ):
        make_head("lstm", seed=0)


def test_the_mlp_is_the_exercises_head():
    """Same layers, same optimiser, trained by an ordinary loop: as good, within noise."""
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 600)
    X = (rng.normal(size=(600, 20)) + 0.5 * np.eye(2, 20)[y]).astype(np.float32)
    ours = MLPHead(random_state=0, epochs=10).fit(X[:400], y[:400]).score(X[400:], y[400:])
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(20, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 2))
    optimiser = torch.optim.AdamW(network.parameters())
    rows = torch.utils.data.TensorDataset(torch.tensor(X[:400]), torch.tensor(y[:400]))
    for _ in range(10):
        for a, b in torch.utils.data.DataLoader(rows, batch_size=32, shuffle=True):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(a), b).backward()
            optimiser.step()
    theirs = (network.eval()(torch.tensor(X[400:])).argmax(1).numpy() == y[400:]).mean()
    assert ours == pytest.approx(theirs, abs=0.06)


def test_the_mlp_drops_nothing_when_it_predicts():
    """Its probabilities are those of the same network in eval mode."""
    X, y = problem()
    head = MLPHead(random_state=0, epochs=2).fit(X, y)
    network = nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 2))
    tensors = [t for weights, bias in head.trained_.layers for t in (weights.T, bias)]
    for parameter, values in zip(network.parameters(), tensors, strict=True):
        parameter.data = torch.tensor(values)
    expected = network(torch.tensor(X)).softmax(1).detach().numpy()
    np.testing.assert_allclose(head.predict_proba(X), expected, atol=1e-6)


def test_training_leaves_the_callers_randomness_and_threads_alone():
    """A head must not change what the next one draws."""
    X, y = problem()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    MLPHead(random_state=0, epochs=1).fit(X, y)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_one_class_cannot_be_learnt():
    """The message says which one was got."""
    with pytest.raises(ValueError, match="one class only"):
        MLPHead().fit(np.zeros((4, 2), np.float32), np.ones(4, int))


def test_a_choice_that_the_rows_cannot_bear_is_not_chosen():
    """Forty rows have no 45 neighbours in a fold; the head is fitted with fewer."""
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    problem = Problem(
        X=untreated((rng.normal(size=(40, 5)) + y[:, None]).astype(np.float32)),
        y=y,
        group=np.arange(40).astype(str),
        seeds=(0,),
    )
    (head,) = train_head("knn", problem)
    assert head.n_neighbors in {5, 15}


def three_classes(widths):
    """150 samples of 50 patients: fit, validation and target; the last column never varies."""
    rng = np.random.default_rng(0)
    n, d = 150, sum(widths)
    patient = np.arange(n) // 3
    y = patient % 3
    X = rng.normal(size=(n, d)) + 3 * np.eye(3, d)[y]
    X[:, -1] = 1.0
    split = np.array(["fit", "fit", "fit", "validation", "target"])[patient // 3 % 5]
    samples = Samples(
        items=(None,) * n,
        key=tuple(i.to_bytes(32, "big") for i in range(n)),
        label=y,
        group=patient.astype(str),
        domain=np.where(split == "target", "there", "source"),
        split=split,
        classes=("a", "b", "c"),
    )
    return FeatureTable(
        backbone="x", stores=(), widths=widths, samples=samples, X=X.astype(np.float32)
    )


@pytest.mark.parametrize("widths", [(8,), (5, 3)], ids=["one backbone", "two backbones"])
@pytest.mark.parametrize("treatment", TREATMENTS)
def test_every_head_learns_three_classes_under_every_treatment(treatment, widths):
    """Chosen by inner folds, with answers for every sample, and named after both."""
    joined = three_classes(widths)
    plan = Plan(heads=tuple(HEADS), seeds=(0,), treatments=(treatment,))
    done, failed = fit_all(joined, plan)
    assert not failed
    assert [one.head for one in done] == [label_of(name, treatment) for name in HEADS]
    unseen = joined.samples.split != "fit"
    for one in done:
        assert one.proba.shape == (150, 3)
        np.testing.assert_allclose(one.proba.sum(1), 1, atol=1e-6)
        right = (one.proba.argmax(1) == joined.samples.label)[unseen].mean()
        assert right > (0.3 if one.head.startswith("prior") else 0.8), one.head
        np.testing.assert_allclose(one.model.predict_proba(joined.X), one.proba, atol=1e-6)
