"""How often intervals hold the truth, in worlds whose truth is known.

Patients have 1 to 8 images that resemble each other: half of the variance of a score, or of
whether an image is right, is the patient's (intra-class correlation 0.5). Prints the tables of
the README: ``python -m tests.evaluation.coverage [RUNS] [NAME ...] [--jobs PROCESSES]``; without
names also how often the tests reject equal heads.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from multiprocessing import get_context
from typing import Any

import numpy as np
from scipy.special import expit
from scipy.stats import norm
from threadpoolctl import threadpool_limits

from pipeline.data.domain import DomainData
from pipeline.evaluation.bootstrap import bbc_cv
from pipeline.evaluation.compare_heads import score_heads, strata
from pipeline.evaluation.intervals import difference_bounds, rate_interval, rate_of
from pipeline.evaluation.metrics import METRICS, score, weighted_mean
from tests.evaluation.test_paired_tests import BLIND, BY_PATIENT, rejected

Job = Callable[[], Any]
PATIENTS = (10, 30, 100, 400)
TRUTHS = (0.8, 0.95, 0.99)
PAIRS = ((0.85, 0.8), (0.95, 0.95), (0.95, 0.85), (0.99, 0.97))
#: Distances of the classes of unequal patients.
APART = (1.0, 3.0)
RIGHT = "right or wrong"
SCORED = (
    *("accuracy", "balanced_accuracy", "sensitivity", "specificity"),
    *("f1", "auroc", "average_precision"),
)


def patients_of(rng, patients: int):
    """Patient of each image."""
    return np.repeat(np.arange(patients), rng.integers(1, 9, patients))


def right_by_patient(rng, group, truth: float):
    """Whether each image is right; a patient's own rate is Beta distributed (correlation 0.5)."""
    own = rng.beta(truth, 1 - truth, group.max() + 1)
    return rng.random(len(group)) < own[group]


def labels_by_patient(rng, group, prevalence: float = 0.5):
    """The same label for all images of a patient, two patients of each class at least."""
    patients = group.max() + 1
    positive = min(max(2, round(prevalence * patients)), patients - 2)
    return (rng.permutation(patients) < positive)[group].astype(np.int64)


def noise(rng, group):
    """Of variance 1, half of it the patient's."""
    own = rng.normal(size=group.max() + 1)[group]
    return np.sqrt(0.5) * (own + rng.normal(size=len(group)))


def reach_of(metric: str, truth: float) -> float:
    """Distance of the classes at which AUROC, or the accuracy at the middle, is the truth."""
    return (np.sqrt(2) if metric in ("auroc", "average_precision") else 2) * norm.ppf(truth)


def proba_of(value):
    return np.c_[expit(-2 * value), expit(2 * value)]


def share(metric: str, label, group, value):
    """The metric of a head that gives these values."""
    return rate_of(METRICS[metric](label, proba_of(value)), group, *strata(metric, label, group))


@cache
def expected(metric: str, truth: float, prevalence: float) -> float:
    """The metric of a head of that reach on very many images."""
    if metric not in ("f1", "average_precision"):
        return truth
    rng, n = np.random.default_rng(0), 400_000
    label = (rng.random(n) < prevalence).astype(np.int64)
    return score(
        metric, label, proba_of(rng.normal(size=n) + reach_of(metric, truth) * (label - 0.5))
    )


def of_rate(rng, patients: int, truth: float):
    """Interval of a rate, and the rate."""
    group = patients_of(rng, patients)
    found = rate_interval(right_by_patient(rng, group, truth), group)
    return found.low, found.high, truth


def bounds_of(metric: str, label, group, value):
    """The interval of a metric of a head that gives these values."""
    data = DomainData(name="simulated", role="target", group=group, label=label)
    found = score_heads(data, {0: proba_of(value)}, seed=0, metrics=(metric,))[0][metric]
    return found.low, found.high


def of_metric(metric: str, prevalence: float = 0.5) -> Callable:
    """The same of a metric of one head."""

    def world(rng, patients: int, truth: float):
        group = patients_of(rng, patients)
        label = labels_by_patient(rng, group, prevalence)
        value = noise(rng, group) + reach_of(metric, truth) * (label - 0.5)
        return *bounds_of(metric, label, group, value), expected(metric, truth, prevalence)

    return world


def of_difference(metric: str) -> Callable:
    """The same of the difference of two heads that share half of their noise."""

    def world(rng, patients: int, truth: tuple[float, float]):
        group = patients_of(rng, patients)
        label, common = labels_by_patient(rng, group), noise(rng, group)
        shares = []
        for one in truth:
            value = np.sqrt(0.5) * (common + noise(rng, group))
            value += reach_of(metric, one) * (label - 0.5)
            shares.append(share(metric, label, group, value))
        gap = expected(metric, truth[0], 0.5) - expected(metric, truth[1], 0.5)
        return *difference_bounds(*shares), gap

    return world


def of_gap(metric: str) -> Callable:
    """The same of the difference between two domains, the second of 100 patients."""

    def world(rng, patients: int, truth: tuple[float, float]):
        shares = []
        for one, count in zip(truth, (patients, 100), strict=True):
            group = patients_of(rng, count)
            label = labels_by_patient(rng, group)
            value = noise(rng, group) + reach_of(metric, one) * (label - 0.5)
            shares.append(share(metric, label, group, value))
        return *difference_bounds(*shares, paired=False), truth[0] - truth[1]

    return world


def unequal(rng, patients: int):
    """Patients of very unequal numbers of images, 15 % positive; noise with heavy tails."""
    group = np.repeat(np.arange(patients), 1 + rng.poisson(rng.gamma(0.5, 6, patients)))
    own = rng.standard_t(4, patients)[group] / np.sqrt(2)
    return group, labels_by_patient(rng, group, 0.15), own + 0.6 * rng.logistic(size=len(group))


@cache
def expected_unequal(metric: str, reach: float) -> float:
    """The metric of such a head on very many patients."""
    _, label, value = unequal(np.random.default_rng(0), 60_000)
    return score(metric, label, proba_of(value + reach * (2 * label - 1)))


def of_unequal(metric: str) -> Callable:
    """Interval and truth of a metric of a head whose classes lie so far apart."""

    def world(rng, patients: int, reach: float):
        group, label, value = unequal(rng, patients)
        bounds = bounds_of(metric, label, group, value + reach * (2 * label - 1))
        return *bounds, expected_unequal(metric, reach)

    return world


def of_unequal_difference(metric: str) -> Callable:
    """The same of the difference to a head whose classes are a fifth nearer."""

    def world(rng, patients: int, reach: float):
        group, label, value = unequal(rng, patients)
        both = (reach, 0.8 * reach)
        shares = [share(metric, label, group, value + one * (2 * label - 1)) for one in both]
        first, second = (expected_unequal(metric, one) for one in both)
        return *difference_bounds(*shares), first - second

    return world


def of_best(heads: int) -> Callable:
    """The same of the best of equally good heads."""

    def world(rng, patients: int, truth: float):
        group = patients_of(rng, patients)
        all_of = [weighted_mean(right_by_patient(rng, group, truth)) for _ in range(heads)]
        *_, found = bbc_cv(all_of, group, rng, draws=100)
        return found.low, found.high, truth

    return world


WORLDS = {
    RIGHT: (of_rate, TRUTHS),
    **{metric: (of_metric(metric), TRUTHS) for metric in SCORED},
    "auroc, 20 % positive": (of_metric("auroc", 0.2), TRUTHS),
    "average precision, 20 % positive": (of_metric("average_precision", 0.2), (0.65, 0.8, 0.95)),
    "difference in accuracy": (of_difference("accuracy"), PAIRS),
    "difference in AUROC": (of_difference("auroc"), PAIRS),
    "difference in average precision": (of_difference("average_precision"), PAIRS),
    "gap in accuracy to 100 other patients": (of_gap("accuracy"), PAIRS),
    "gap in AUROC to 100 other patients": (of_gap("auroc"), PAIRS),
    "best of 11 equal heads": (of_best(11), TRUTHS),
    **{
        f"{metric}, unequal patients": (of_unequal(metric), APART)
        for metric in ("balanced_accuracy", "sensitivity", "f1", "average_precision")
    },
    "difference in average precision, unequal patients": (
        of_unequal_difference("average_precision"),
        APART,
    ),
}


def coverage(world: Callable, patients: int, truth, repeats: int, seed: int = 0):
    """Share of the intervals that hold the truth, their mean width, and the least width."""
    rng = np.random.default_rng([seed, patients])
    bounds = np.array([world(rng, patients, truth) for _ in range(repeats)])
    low, high, true = bounds.T
    known = np.isfinite(low)
    held = (low <= true) & (true <= high)
    return held[known].mean(), (high - low)[known].mean(), (high - low)[known].min()


def samples(runs: int, patients: int) -> int:
    """Two fifths of them where a sample takes long."""
    return runs if patients < 400 else max(1, 2 * runs // 5)


def cell(name: str, patients: int, truth, runs: int) -> str:
    """Coverage in percent and mean width in points of one world."""
    held, width, _ = coverage(WORLDS[name][0], patients, truth, samples(runs, patients))
    return f"{100 * held:.1f} % ({100 * width:.0f})"


def parser(description: str | None, runs: int) -> argparse.ArgumentParser:
    """Options of a simulation: how many runs, in how many processes."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("runs", nargs="?", type=int, default=runs)
    options.add_argument("--jobs", type=int, help="Processes; one a core where left out.")
    return options


@contextmanager
def in_processes(count: int | None) -> Iterator[Callable[[Iterable[Job]], Iterator[Any]]]:
    """A function that runs jobs, one core each, and gives their results in order."""
    with ProcessPoolExecutor(
        count, mp_context=get_context("spawn"), initializer=threadpool_limits, initargs=(1,)
    ) as pool:
        yield partial(pool.map, _run)


def _run(job: Job) -> Any:
    return job()


def main() -> None:
    """Print a line for every world and truth."""
    arguments = parser(__doc__, 200)
    arguments.add_argument("names", nargs="*", default=[*WORLDS], help="All where left out.")
    options = arguments.parse_args()
    print(f"{options.runs} samples a cell; coverage has a standard error of", end=" ")
    errors = [100 * np.sqrt(0.05 * 0.95 / samples(options.runs, n)) for n in (10, 400)]
    print(f"{errors[0]:.1f} points, of 400 patients {errors[1]:.1f}.\n")
    print("| interval of | truth |", *(f"{n} patients |" for n in PATIENTS))
    print("|---|---|" + "---|" * len(PATIENTS), flush=True)
    lines = [(name, truth) for name in options.names for truth in WORLDS[name][1]]
    with in_processes(options.jobs) as run:
        cells = run(
            partial(cell, name, patients, truth, options.runs)
            for name, truth in lines
            for patients in PATIENTS
        )
        for name, truth in lines:
            shown = f"{truth[0]:.2f} - {truth[1]:.2f}" if isinstance(truth, tuple) else truth
            texts = " | ".join(next(cells) for _ in PATIENTS)
            print(f"| {name.replace('_', ' ')} | {shown} | {texts} |", flush=True)
        if options.names == [*WORLDS]:
            print_rejections(options.runs, run)


def print_rejections(runs: int, run: Callable) -> None:
    """A line for each test: how often p is below 0.05 for two equal heads."""
    print("\n| test | rejects equal heads, % |\n|---|---|")
    tests = (*BY_PATIENT, *BLIND)
    for test, rate in zip(tests, run(partial(rejected, test, runs) for test in tests), strict=True):
        name = test.__name__.removeprefix("of_").replace("_", " ")
        print(f"| {name} | {100 * rate:.1f} |", flush=True)


if __name__ == "__main__":
    main()
