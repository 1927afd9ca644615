"""Measure stage 2 against the best alternatives, and against its goals.

    python -m tests.bench.heads [linear] [cores] [growth] [mlp] [stage]
        [--study demo/study.toml] [--rows 5000,20000,50000] [--width 1024] [--repeats 1]

linear: ten penalties on five folds, against scikit-learn's other ways along the same path.
cores: all heads on 1,600 rows, out-of-fold fits included: one core against all.
growth: five heads on more and more rows, with the exponent and the peak of memory; in CPU
seconds of all processes.
mlp: ten perceptrons, against a plain torch loop with its tensors in memory, and against the
time that their arithmetic alone takes; in CPU seconds.
stage: the command ``headrace heads`` on stored features, start and figures included.

The last table has each goal with what was measured. It needs Linux.

All but ``stage`` make their features, and need NumPy, SciPy and scikit-learn alone (``mlp``
torch too). The fewest seconds of the repeats count, because everything else is other work.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from joblib import parallel_config
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from threadpoolctl import threadpool_limits

from pipeline.data.domain import DomainData
from pipeline.heads import HEADS
from pipeline.heads.base import make_preprocessing
from pipeline.heads.logistic import logistic_path, make_logistic
from pipeline.heads.mlp import MLPHead
from pipeline.heads.search import HeadSearch, import_heads
from pipeline.parallel import run_each

PENALTIES = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0, 10.0)
GROWING = ("linear", "ridge", "lda", "mlp", "knn")
CORES = sorted(os.sched_getaffinity(0))
#: Name, flags, and the goal in seconds on two quiet cores; the first table within 5 s.
STAGE = (
    ("default", (), 10.0),
    ("quick", ("--quick",), 5.0),
    ("thorough", ("--thorough",), 60.0),
    ("one head", ("--quick", "--only", "prior"), 1.5),
    ("again, one head more", (), None),
    ("--help", (), 0.25),
    ("Python alone", (), None),
)
#: What was measured: what it is, its goal, the value.
GOALS: list[tuple[str, float, float]] = []
#: What is started without a study.
BARE = {
    "--help": ("-m", "pipeline.cli", "--help"),
    "Python alone": ("-c", ""),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts that are asked for and print a table of each."""
    parts: dict[str, Callable[[argparse.Namespace], None]] = {
        "linear": _linear, "cores": _cores, "growth": _growth, "mlp": _mlp, "stage": _stage,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(parts))
    parser.add_argument("--study", type=Path, default=Path("demo/study.toml"))
    parser.add_argument("--rows", default="5000,20000,50000")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--child", help="Heads: fit them and print seconds and peak memory.")
    options = parser.parse_args(arguments)
    if options.child:
        _fit_here(options.child.split(","), int(options.rows), options.width)
        return
    print(f"{len(CORES)} cores")
    for part in options.parts:
        parts[part](options)
    _table("goals", ("", "goal", "measured"), GOALS)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    print(f"\n{title}")
    for row in (columns, *rows):
        texts = ["-" if v is None else f"{v:.3g}" if isinstance(v, float) else str(v) for v in row]
        print(f"{texts[0]:<42}" + "".join(f"{text:>13}" for text in texts[1:]), flush=True)


def _rows(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = np.arange(n) // 4 % 2
    X = rng.standard_normal((n, d), np.float32)
    X[:, :20] += 0.3 * y[:, None]
    return X, y


def _alternate(
    actions: Mapping[str, Callable[[], Any]],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Fewest seconds of each, taken in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats):
        for name, action in actions.items():
            start = clock()
            action()
            seconds[name].append(clock() - start)
    return {name: min(of_action) for name, of_action in seconds.items()}


def _linear(options: argparse.Namespace) -> None:
    rows = []
    for n, d in ((500, 512), (1600, 1024), (5000, 1024)):
        X, y = _rows(n, d)
        fold = np.arange(n) // 4 % 5
        folds = [(np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in range(5)]
        for cores in sorted({1, 2, len(CORES)} & set(range(1, len(CORES) + 1))):
            losses: dict[str, float] = {}
            path = partial(_along_folds, X, y, folds, cores, losses)
            actions = {
                "ours": partial(path, logistic_path),
                "newton": partial(path, _warm_newton),
                "library": partial(_library, X, y, folds, cores),
            }
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                seconds = _alternate(actions, options.repeats)
            rows.append((f"{n} x {d}, {cores} cores", *seconds.values(), *losses.values()))
            # Ours is scikit-learn's default solver: it stays as long as no other is faster.
            ratio = seconds["ours"] / seconds["newton"]
            GOALS.append((f"linear by newton-cg, {n} x {d}, {cores} cores", 1.0, ratio))
    _table(
        "linear: seconds of 10 penalties x 5 folds",
        ("", "ours", "newton-cg", "Logistic..CV", "log loss", "of newton-cg"),
        rows,
    )


def _along_folds(
    X: np.ndarray,
    y: np.ndarray,
    folds: Any,
    cores: int,
    losses: dict[str, float],
    path: Callable[..., np.ndarray],
) -> None:
    """The path on every fold; notes the lowest mean log loss on held-out rows."""

    def of_fold(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        heads = [make_logistic(C) for C in PENALTIES]
        proba = path(heads, X[train], y[train], X[test])
        return np.log(np.maximum(proba[:, np.arange(len(test)), y[test]], 1e-15)).sum(axis=1)

    os.sched_setaffinity(0, CORES[:cores])
    with threadpool_limits(1) if cores == 1 else nullcontext():
        gains = run_each([partial(of_fold, *fold) for fold in folds])
    os.sched_setaffinity(0, CORES)
    losses[path.__name__] = float(-np.max(np.sum(gains, axis=0)) / len(y))


def _warm_newton(
    heads: list[LogisticRegression], X: np.ndarray, y: np.ndarray, other: np.ndarray
) -> np.ndarray:
    model = LogisticRegression(solver="newton-cg", warm_start=True, tol=1e-3)
    return np.stack([model.set_params(C=head.C).fit(X, y).predict_proba(other) for head in heads])


def _library(X: np.ndarray, y: np.ndarray, folds: Any, cores: int) -> None:
    with threadpool_limits(1), parallel_config("threading"):
        LogisticRegressionCV(
            Cs=PENALTIES, cv=folds, scoring="neg_log_loss", solver="newton-cg",
            use_legacy_attributes=False, l1_ratios=(0.0,), n_jobs=cores,
        ).fit(X, y)  # fmt: skip


def _cores(options: argparse.Namespace) -> None:
    seconds = {
        len(cores): min(
            _fit_in_child(list(HEADS), 1600, 1280, cores)[0] for _ in range(options.repeats)
        )
        for cores in (CORES[:1], CORES)
    }
    one, every = seconds[1], seconds[len(CORES)]
    _table(
        "cores: seconds of all heads on 1600 x 1280, fits and fits out of fold",
        ("", "1 core", f"{len(CORES)} cores", "ratio"),
        [(f"{len(HEADS)} heads", one, every, one / every)],
    )
    GOALS.append((f"one core by {len(CORES)}; at least (of 16)", 5, one / every))


def _growth(options: argparse.Namespace) -> None:
    """Each head in a process of its own: folds to choose by, one fit, all rows predicted."""
    sizes = [int(n) for n in options.rows.split(",")]
    rows, total = [], np.zeros(len(sizes))
    for name in GROWING:
        measured = [_fit_in_child([name], n, options.width, CORES) for n in sizes]
        _, seconds, peaks = zip(*measured, strict=True)
        exponent = np.polyfit(np.log(sizes), np.log(seconds), 1)[0] if len(sizes) > 1 else None
        rows.append((name, *seconds, exponent, peaks[-1]))
        total += seconds
    _table(
        f"growth: CPU seconds, width {options.width}; memory: the peak of the last by its features",
        ("", *(f"{n:,}" for n in sizes), "exponent", "memory"),
        [*rows, ("together", *total, None, max(row[-1] for row in rows))],
    )
    GOALS.append((f"growth, {sizes[-1]:,} rows: seconds of 2 cores", 90, total[-1] / 2))
    GOALS.append(("growth, memory by the features' bytes", 3, max(row[-1] for row in rows)))


def _fit_in_child(
    heads: Sequence[str], n: int, width: int, cores: Sequence[int]
) -> tuple[float, float, float]:
    """Wall and CPU seconds, and peak memory by the features' size, on these cores."""
    command = [sys.executable, "-m", "tests.bench.heads", "--child", ",".join(heads)]
    said = subprocess.run(
        [*command, "--rows", str(n), "--width", str(width)],
        check=True, stdout=subprocess.PIPE, text=True,
        preexec_fn=partial(os.sched_setaffinity, 0, cores),  # before it counts its cores
    ).stdout  # fmt: skip
    seconds, cpu, memory = map(float, said.split())
    return seconds, cpu, memory


def _fit_here(heads: Sequence[str], n: int, width: int) -> None:
    import_heads({name: HEADS[name] for name in heads})
    base = _memory()
    X, y = _rows(n, width)
    data = DomainData(
        name="source", role="fit", group=np.arange(n) // 4, label=y.astype(np.int64), features=X
    )
    start, before = time.perf_counter(), _cpu()
    search = HeadSearch(
        data, {name: HEADS[name] for name in heads}, seeds=(0, 1, 2),
        preprocessing=partial(make_preprocessing, "standardise", (width,)),
    )  # fmt: skip
    with _peak_of_memory() as peak:
        search.out_of_fold(search.fit(X, np.arange(0, n, 5)), repeats=1)
    if search.failures:
        raise SystemExit(str(search.failures))
    memory = (max(peak) - base) / (X.nbytes / 1e9)
    print(time.perf_counter() - start, _cpu() - before, memory)


def _cpu() -> float:
    """Seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


@contextmanager
def _peak_of_memory() -> Iterator[list[float]]:
    """GB of this process and its children, ten times a second."""
    values, ended = [0.0], threading.Event()

    def measure() -> None:
        while not ended.wait(0.1):
            values.append(_memory())

    threading.Thread(target=measure, daemon=True).start()
    yield values
    ended.set()


def _memory() -> float:
    """GB of this process and its children, pages that they share counted once."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    total = 0
    for process in ("self", *children):
        try:
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:  # ended meanwhile
            continue
        total += int(re.search(r"Pss:\s+(\d+)", rollup)[1])
    return total * 1024 / 1e9


def _mlp(options: argparse.Namespace, heads: int = 10) -> None:
    """The exercise's training: 1600 rows, 30 epochs, batches of 32."""
    import torch

    repeats, width = options.repeats, options.width
    X, y = _rows(1600, width)
    settings = {"epochs": 30, "batch_size": 32, "learning_rate": 1e-3}
    jobs = [partial(MLPHead(random_state=s, **settings).fit, X, y) for s in range(heads)]
    square = torch.randn(2048, 2048)
    # Forward, and backward to weights and inputs, as it is usually counted.
    operations = 6 * len(X) * (width * 256 + 256 * 2) * 30

    def products() -> None:
        for _ in range(4):
            square @ square

    def plain() -> None:
        network = torch.nn.Sequential(
            torch.nn.Linear(width, 256), torch.nn.ReLU(), torch.nn.Dropout(0.5),
            torch.nn.Linear(256, 2),
        )  # fmt: skip
        optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
        features, labels = torch.from_numpy(X), torch.from_numpy(y)
        for _ in range(30):
            for at in torch.randperm(len(X)).split(32):
                optimiser.zero_grad()
                torch.nn.functional.cross_entropy(network(features[at]), labels[at]).backward()
                optimiser.step()

    torch.set_num_threads(1)
    actions = {"ours": lambda: [job() for job in jobs], "plain": plain, "products": products}
    with threadpool_limits(1):
        seconds = _alternate(actions, repeats, time.process_time)
        bound = operations / (4 * 2 * 2048**3 / seconds["products"])
        quick = {"default": lambda: MLPHead().fit(X, y)}
        default = _alternate(quick, repeats, time.process_time)["default"]
    rows = (
        ("ours, 30 epochs of batches of 32", seconds["ours"] / heads),
        ("plain torch loop, tensors in memory", seconds["plain"]),
        (f"{operations / 1e9:.0f} GFLOP at the rate of a large product", bound),
        ("ours, default schedule", default),
    )
    _table(
        "mlp: CPU seconds a head",
        ("", "seconds", "times"),
        [(name, value, value / bound) for name, value in rows],
    )
    GOALS.append(("mlp by its arithmetic", 1.3, seconds["ours"] / heads / bound))


def _stage(options: argparse.Namespace) -> None:
    """Each command in a folder of its own, with the features of this one."""
    study = options.study
    store = Path(os.environ.get("HEADRACE_FEATURES", "features")).resolve()
    environment = {**os.environ, "HEADRACE_FEATURES": str(store), "PYTHONPATH": str(Path.cwd())}
    heads = [sys.executable, "-m", "pipeline.cli", "heads", str(study.resolve())]
    others = ",".join(name for name in HEADS if name != "lda")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, flags, goal in STAGE:
            work = Path(folder) / str(len(rows))
            work.mkdir()
            if name == "again, one head more":
                _timed([*heads, "--only", others], work, environment)
            command = [*heads, *flags]
            if name in BARE:
                command = [sys.executable, *BARE[name]]
            table, wall, cpu = _timed(command, work, environment)
            rows.append((f"{name} {' '.join(flags)}", table, wall, cpu))
            if name == "default":
                GOALS.append(("heads: seconds to the first table", 5.0, table))
            if name == "--help":
                wall -= _timed([sys.executable, *BARE["Python alone"]], work, environment)[1]
            if goal:
                GOALS.append((f"heads {' '.join(flags)} ({name}): seconds", goal, wall))
    _table(
        f"stage: seconds of {study}, start, saved heads and figures included",
        ("", "first table", "all", "CPU"),
        rows,
    )


def _timed(
    command: Sequence[str], work: Path, environment: Mapping[str, str]
) -> tuple[float | None, float, float]:
    """Wall seconds until the first table and until the end, and CPU seconds."""
    start, before, table = time.perf_counter(), os.times(), None
    with subprocess.Popen(
        command, cwd=work, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        for line in process.stdout:
            if line.startswith(b"validation:"):
                table = table or time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    after = os.times()
    cpu = after.children_user + after.children_system
    wall = time.perf_counter() - start
    return table, wall, cpu - before.children_user - before.children_system


if __name__ == "__main__":
    main()
