"""Measure stage 2 against the best alternatives, and against its goals.

    python -m tests.bench.heads [linear] [mlp] [stage] [growth]
        [--study demo/study.toml] [--rows 5000,20000,50000] [--width 1024]

linear: ten penalties on five folds, against scikit-learn's other ways along the same path.
mlp: ten perceptrons at the same time, against a plain torch loop with its tensors in memory,
and against the time that their arithmetic alone takes.
stage: the command ``headrace heads`` on stored features, start and figures included; one core
against all; what starting alone takes.
growth: five heads on more and more rows, with the exponent and the peak of memory (Linux).
The fastest of some alternating repeats counts, because everything else is other work.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from threadpoolctl import threadpool_limits

from pipeline.data.domain import DomainData
from pipeline.heads import HEADS
from pipeline.heads.logistic import logistic_path, make_logistic
from pipeline.heads.mlp import MLPHead
from pipeline.heads.parallel import run_parallel
from pipeline.heads.preprocessing import make_preprocessing
from pipeline.heads.search import Fitting
from pipeline.report.table import Column, Table, to_terminal

PENALTIES = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0, 10.0)
GROWING = ("linear", "ridge", "lda", "mlp", "knn")
#: Name, flags, and the goal in wall seconds on two quiet cores; the first table within 5 s.
STAGE = (
    ("default", (), 10.0),
    ("quick", ("--quick",), 5.0),
    ("thorough", ("--thorough",), 60.0),
    ("one head", ("--quick", "--only", "prior"), 1.5),
    ("again, one head more", (), None),
    ("all cores", ("--no-figures",), None),
    ("one core", ("--no-figures",), None),
    ("--help", (), 0.25),
    ("Python alone", (), None),
    ("Python, scikit-learn", (), None),
)
#: What is started without a study.
BARE = {
    "--help": ("-m", "pipeline.cli", "--help"),
    "Python alone": ("-c", ""),
    "Python, scikit-learn": ("-c", "import sklearn.linear_model"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts that are asked for and print a table of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["linear", "mlp", "stage", "growth"])
    parser.add_argument("--study", type=Path, default=Path("demo/study.toml"))
    parser.add_argument("--rows", default="5000,20000,50000")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", help="A head: fit it and print seconds and peak memory.")
    options = parser.parse_args(arguments)
    rows = [int(n) for n in options.rows.split(",")]
    if options.child:
        _measure(options.child, rows[0], options.width)
        return
    print(f"{os.cpu_count()} cores")
    for part in options.parts:
        table = {
            "linear": partial(_linear, options.repeats),
            "mlp": partial(_mlp, options.repeats, options.width),
            "stage": partial(_stage, options.study),
            "growth": partial(_growth, rows, options.width),
        }[part]()
        print("\n" + to_terminal(table))


def _rows(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = np.arange(n) // 4 % 2
    X = rng.standard_normal((n, d), np.float32)
    X[:, :20] += 0.3 * y[:, None]
    return X, y


def _alternate(actions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Fastest CPU seconds of each, taken in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats):
        for name, action in actions.items():
            start = time.process_time()
            action()
            seconds[name].append(time.process_time() - start)
    return {name: min(found) for name, found in seconds.items()}


def _linear(repeats: int) -> Table:
    rows = []
    for n, d in ((500, 512), (1600, 1024), (5000, 1024)):
        X, y = _rows(n, d)
        folds = [
            (np.flatnonzero(np.arange(n) // 4 % 5 != f), np.flatnonzero(np.arange(n) // 4 % 5 == f))
            for f in range(5)
        ]
        losses: dict[str, float] = {}

        def ours(X=X, y=y, folds=folds, losses=losses) -> None:
            losses["ours"] = _loss(X, y, folds, logistic_path)

        def newton(X=X, y=y, folds=folds, losses=losses) -> None:
            losses["newton-cg"] = _loss(X, y, folds, _warm_newton)

        def library(X=X, y=y, folds=folds) -> None:
            LogisticRegressionCV(
                Cs=PENALTIES, cv=folds, scoring="neg_log_loss", solver="newton-cg",
                use_legacy_attributes=False, l1_ratios=(0.0,),
            ).fit(X, y)  # fmt: skip

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = _alternate(
                {"ours": ours, "newton-cg": newton, "LogisticRegressionCV": library}, repeats
            )
        rows.append((f"{n} x {d}", *found.values(), *losses.values()))
    return Table(
        title="linear: 10 penalties x 5 folds, CPU seconds; goal: half of newton-cg, warm",
        columns=(
            Column(name="features"),
            *(
                Column(name=name, kind="seconds")
                for name in ("ours", "newton-cg, warm", "LogisticRegressionCV")
            ),
            Column(name="best log loss: ours", kind="number"),
            Column(name="newton-cg", kind="number"),
        ),
        rows=tuple(rows),
    )


def _loss(X: np.ndarray, y: np.ndarray, folds: Any, path: Callable[..., np.ndarray]) -> float:
    """The lowest mean log loss on held-out rows along the path."""
    loss = np.zeros(len(PENALTIES))
    for inside, outside in folds:
        heads = [make_logistic(C) for C in PENALTIES]
        proba = path(heads, X[inside], y[inside], X[outside])
        p = proba[:, np.arange(len(outside)), y[outside]]
        loss -= np.log(np.maximum(p, 1e-15)).sum(axis=1) / len(y)
    return float(loss.min())


def _warm_newton(
    heads: list[LogisticRegression], X: np.ndarray, y: np.ndarray, other: np.ndarray
) -> np.ndarray:
    model = LogisticRegression(solver="newton-cg", warm_start=True, tol=1e-3)
    return np.stack([model.set_params(C=head.C).fit(X, y).predict_proba(other) for head in heads])


def _mlp(repeats: int, width: int, heads: int = 10) -> Table:
    """The exercise's training: 1600 rows, 30 epochs, batches of 32."""
    import torch

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
    found = _alternate(
        {"ours": lambda: run_parallel(jobs), "plain": plain, "products": products}, repeats
    )
    bound = operations / (4 * 2 * 2048**3 / found["products"])
    with threadpool_limits(1):
        default = _alternate({"default": lambda: MLPHead().fit(X, y)}, repeats)["default"]
    return Table(
        title=f"mlp: CPU seconds a head, {heads} at once; goal: 1.3 times the arithmetic alone",
        columns=(
            Column(name="training"),
            Column(name="seconds", kind="seconds"),
            Column(name="times the arithmetic", kind="number"),
        ),
        rows=tuple(
            (name, seconds, seconds / bound)
            for name, seconds in (
                ("ours, 30 epochs of batches of 32", found["ours"] / heads),
                ("plain torch loop, tensors in memory", found["plain"]),
                (f"{operations / 1e9:.0f} GFLOP at the rate of a large product", bound),
                ("ours, default schedule", default),
            )
        ),
    )


def _stage(study: Path) -> Table:
    """Each command in a folder of its own, with the features of this one."""
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
            elif name == "one core":
                command = ["taskset", "-c", "0", *command]
            rows.append((name, " ".join(flags), *_timed(command, work, environment), goal))
    return Table(
        title=f"stage: {study}, start, saved heads and figures included",
        columns=(
            Column(name="what"),
            Column(name="flags"),
            *(
                Column(name=name, kind="seconds")
                for name in ("first table s", "all s", "CPU s", "goal, all s")
            ),
        ),
        rows=tuple(rows),
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


def _growth(sizes: Sequence[int], width: int) -> Table:
    """Each head in a process of its own: folds to choose by, one fit, all rows predicted."""
    seconds: dict[str, list[float]] = {name: [] for name in GROWING}
    peaks: dict[str, float] = {}
    for rows in sizes:
        for name in GROWING:
            command = [sys.executable, "-m", "tests.bench.heads", "--child", name]
            command += ["--rows", str(rows), "--width", str(width)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found, peaks[name] = map(float, said.split())
            seconds[name].append(found)
    steps = np.log(sizes)
    return Table(
        title=f"growth: seconds on rows x {width}; goal for 50,000: 90 s together, memory below 3",
        columns=(
            Column(name="head"),
            *(Column(name=f"{rows:,}", kind="seconds") for rows in sizes),
            Column(name="exponent", kind="number"),
            Column(name="peak memory / features", kind="number"),
        ),
        rows=(
            *(
                (
                    name,
                    *of,
                    np.polyfit(steps, np.log(of), 1)[0] if len(of) > 1 else None,
                    peaks[name],
                )
                for name, of in seconds.items()
            ),
            ("together", *np.sum(list(seconds.values()), axis=0), None, max(peaks.values())),
        ),
    )


def _measure(name: str, n: int, width: int) -> None:
    base = _memory("VmRSS")
    X, y = _rows(n, width)
    data = DomainData(
        name="source", role="fit", group=np.arange(n) // 4, label=y.astype(np.int64), features=X
    )
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak until now
    start = time.perf_counter()
    fitting = Fitting(
        data, {name: HEADS[name]}, seeds=(0, 1, 2),
        preprocessing=partial(make_preprocessing, "standardise", (width,)),
    )  # fmt: skip
    fitting.out_of_fold(fitting.fit(X, np.arange(0, n, 5)), repeats=1)
    if fitting.failures:
        raise SystemExit(str(fitting.failures))
    seconds = time.perf_counter() - start
    print(seconds, (_memory("VmHWM") - base) / (X.nbytes / 1e9))


def _memory(name: str) -> float:
    """A line of what Linux says of this process, in GB."""
    status = Path("/proc/self/status").read_text()
    return float(re.search(rf"{name}:\s+(\d+)", status)[1]) * 1024 / 1e9


if __name__ == "__main__":
    main()
