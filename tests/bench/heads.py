"""Measure stage 2 against what a user would otherwise use, in one run on the same features.

    python -m tests.bench.heads [--rows 1600] [--width 1024] [--heads 10]

(a) ``mlp``: heads trained together against a plain PyTorch DataLoader loop for one;
(b) ``linear``: ten penalties on five folds at once against scikit-learn, one fit at a time.
Alternating repeats; the fastest of each counts, because everything else is other work.
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from pipeline.heads.logistic import solve_path
from pipeline.heads.mlp import MLPSettings, Rows, train_mlps

EPOCHS = 30


def main() -> None:
    """Run both comparisons and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1600)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, options.rows)
    X = rng.normal(size=(options.rows, options.width)).astype(np.float32)
    X[:, :20] += 0.4 * y[:, None]
    print(f"{os.cpu_count()} cores; features {X.shape}")
    _mlp(X, y, options.heads, options.repeats)
    _linear(X, y, options.repeats)


def _mlp(X: np.ndarray, y: np.ndarray, heads: int, repeats: int) -> None:
    settings = [MLPSettings(seed=seed, epochs=EPOCHS) for seed in range(heads)]
    ours, plain = _alternate(
        lambda: train_mlps(Rows(X=X, y=y), settings), lambda: _plain_loop(X, y), repeats
    )
    print(
        f"mlp, {EPOCHS} epochs, batch 32: plain DataLoader loop {plain:.2f} s a head; "
        f"{heads} together {ours / heads:.2f} s a head: {plain / (ours / heads):.1f} times"
    )


def _plain_loop(X: np.ndarray, y: np.ndarray) -> None:
    """What a tutorial has."""
    network = nn.Sequential(
        nn.Linear(X.shape[1], 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 2)
    )
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    data = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    loader = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True)
    for _ in range(EPOCHS):
        for rows, labels in loader:
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(rows), labels).backward()
            optimiser.step()


def _linear(X: np.ndarray, y: np.ndarray, repeats: int) -> None:
    penalties = np.logspace(-4, 1, 10)
    fold = np.arange(len(X)) % 5
    weights = np.stack([(fold != f).astype(float) for f in range(5) for _ in penalties])
    ours, plain = _alternate(
        lambda: solve_path(X, y, C=np.tile(penalties, 5), weights=weights, tol=1e-3),
        lambda: _one_by_one(X, y, penalties, fold),
        repeats,
    )
    print(
        f"linear, 10 penalties x 5 folds: scikit-learn one at a time {plain:.2f} s; "
        f"all at once {ours:.2f} s: {plain / ours:.1f} times"
    )


def _one_by_one(X: np.ndarray, y: np.ndarray, penalties: np.ndarray, fold: np.ndarray) -> None:
    for f in range(5):
        for C in penalties:
            LogisticRegression(C=C, max_iter=1000).fit(X[fold != f], y[fold != f])


def _alternate(
    ours: Callable[[], Any], plain: Callable[[], Any], repeats: int
) -> tuple[float, float]:
    """Fastest seconds of each, taken in turns."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for action, found in zip((ours, plain), seconds, strict=True):
            start = time.perf_counter()
            action()
            found.append(time.perf_counter() - start)
    return min(seconds[0]), min(seconds[1])


if __name__ == "__main__":
    main()
