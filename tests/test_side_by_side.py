"""Fits at the same time give what fits one after the other give."""

import threading

import numpy as np
import pytest
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from pipeline.heads import HEADS
from pipeline.heads import parallel as side_by_side
from pipeline.heads.calibrated import CalibratedHead
from pipeline.heads.out_of_fold import FitSplit, at_chosen, out_of_fold
from pipeline.heads.parallel import folded
from pipeline.heads.preprocessing import untreated
from pipeline.heads.search import Problem, train_head

TOGETHER = [name for name, spec in HEADS.items() if spec.together]


@pytest.fixture
def two_cores(monkeypatch):
    """Whatever this machine has."""
    monkeypatch.setattr(side_by_side, "_cores", lambda: 2)


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    X = rng.normal(size=(60, 5)).astype(np.float32) + 0.8 * y[:, None].astype(np.float32)
    return X, y, (np.arange(60) // 2).astype(str)


def test_two_jobs_run_at_once_and_answer_in_their_order(two_cores):
    """Each waits for the other, which one after the other would never end."""
    meet = threading.Barrier(2, timeout=20)

    def job(number):
        meet.wait()
        return number

    assert folded(job, [(1,), (2,)], cells=10) == [1, 2]


@pytest.mark.parametrize("cells", [None, side_by_side.MOST + 1])
def test_large_features_are_not_copied_for_two_fits_at_once(two_cores, cells):
    """Nor is anything else run at once that did not say that it can be."""
    names = folded(lambda _: threading.current_thread().name, [(1,), (2,)], cells)
    assert set(names) == {threading.current_thread().name}


def test_jobs_of_a_job_start_no_further_threads(two_cores):
    """Two cores are two fits, at whatever depth."""

    def inner(_):
        return threading.get_ident()

    def outer(_):
        return threading.get_ident(), set(folded(inner, [(1,), (2,)], cells=10))

    for own, found in folded(outer, [(1,), (2,)], cells=10):
        assert found == {own}


def test_an_error_is_heard_and_the_number_of_threads_is_as_before(two_cores):
    """Here and in threads that begin afterwards."""

    def fails(_):
        torch.ones(2).sum()
        raise ValueError("singular")

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="singular"):
            folded(fails, [(1,), (2,)], cells=10)
        later = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert (torch.get_num_threads(), later) == (2, [2])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", TOGETHER)
def test_a_head_is_the_same_at_the_same_time_as_others(name, rows, monkeypatch):
    """Bit by bit, chosen parameters and held-out probabilities too."""
    X, y, group = rows
    found = []
    for cores in (1, 2):
        monkeypatch.setattr(side_by_side, "_cores", lambda cores=cores: cores)
        heads = train_head(
            name, Problem(X=untreated(X), y=y, group=group, seeds=(0, 1, 2, 3, 4, 5))
        )
        fit = FitSplit(X=X, rows=np.arange(60), y=y, group=group, seed=0)
        again = out_of_fold(
            {name: make_pipeline(StandardScaler(), heads[0])},
            fit,
            repeats=1,
            specs={name: HEADS[name]},
        )
        found.append([head.predict_proba(X) for head in heads] + [again.proba[name][0]])
    np.testing.assert_array_equal(np.stack(found[0]), np.stack(found[1]))


def test_support_vectors_are_the_same_of_rows_taken_in_parts(rows):
    """As of the array of them all: patients, choice and sigmoid too."""
    X, y, group = rows
    heads = [
        CalibratedHead(SVC(), candidates=[{"C": 1e-6}, {"C": 1.0}]).fit(given, y, groups=group)
        for given in (X, untreated(X))
    ]
    assert heads[0].n_features_in_ == heads[1].n_features_in_ == X.shape[1]
    assert heads[0].best_params_ == heads[1].best_params_
    np.testing.assert_array_equal(heads[0].predict_proba(X), heads[1].predict_proba(X))


def test_what_support_vectors_chose_is_not_chosen_again(rows):
    """The folds of the comparison fit the kept candidate alone."""
    X, y, group = rows
    head = CalibratedHead(SVC(), candidates=[{"C": 1e-6}, {"C": 1.0}])
    model = make_pipeline(StandardScaler(), head).fit(X, y, calibratedhead__groups=group)
    again = at_chosen(model)[-1]
    assert again.candidates == (model[-1].best_params_,)
    assert model[-1].best_params_ == again.fit(X, y, groups=group).best_params_
