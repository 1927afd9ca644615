"""Peak memory of stage 2 on many rows, read from a real store; on Linux.

    python -m tests.bench.memory [--rows 200000] [--width 1024] [--epochs 3] [--seeds 1]
                                 [--heads linear,ridge,prototype,small_mlp]

Inner selection, folds, intervals and comparisons, as ``headrace heads`` has them; but the
perceptrons are trained for few epochs, since each costs the same again and no memory.

The store is written into a temporary folder first; a child process reads it and fits, so
that the peak is the comparison's own. Multiples of the features leave out what the process
holds before it reads any: interpreter and libraries.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from cache.recipe import Recipe
from cache.store import FeatureStore, Writer
from pipeline.compare import CompareOptions, Failure, Fitted, Plan, fit_all, table_of
from pipeline.data.items import Item
from pipeline.data.patients import VALIDATION
from pipeline.data.samples import Samples
from pipeline.features.load import FeatureTable
from pipeline.heads.custom import all_heads
from pipeline.study import CustomHead

HEADS = "linear,ridge,prototype,small_mlp"
RECIPE = Recipe(
    backbone="generated", cut="none", pooling="none", weights="0" * 64,
    preprocessing={}, precision="fp32",
)  # fmt: skip


def main() -> None:
    """Write the store, then fit in a child and print its peak."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("rows", 200_000), ("width", 1024), ("epochs", 3), ("seeds", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--heads", default=HEADS)
    parser.add_argument("--child", type=Path)
    options = parser.parse_args()
    if options.child:
        _fit(options.child, options)
        return
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), options.rows, options.width)
        command = [sys.executable, "-m", "tests.bench.memory", *sys.argv[1:], "--child", folder]
        subprocess.run(command, check=True)


def _write(root: Path, rows: int, width: int) -> None:
    store = FeatureStore(root, RECIPE)
    store.prepare()
    rng = np.random.default_rng(0)
    with Writer(store) as writer:
        for start in range(0, rows, 1024):
            block = rng.standard_normal((min(1024, rows - start), width), np.float32)
            block[:, :20] += 0.1 * (np.arange(start, start + len(block)) % 2)[:, None]
            for i, row in enumerate(block, start):
                writer.add(i.to_bytes(32, "big"), row)


def _fit(root: Path, options: argparse.Namespace) -> None:
    import torch  # noqa: F401 - of the libraries that are there before any feature

    n, base = options.rows, _memory("VmRSS")
    store = FeatureStore(root, RECIPE)
    key = tuple(i.to_bytes(32, "big") for i in range(n))
    split = np.array(["fit", "fit", "fit", "fit", "validation"])[np.arange(n) // 8 % 5]
    samples = Samples(
        items=(Item(path="", label="", file="", row=None, stat=None),) * n,
        key=key,
        label=np.arange(n) % 2,
        group=np.array([f"p{i // 4}" for i in range(n)]),
        domain=np.repeat("source", n),
        split=split,
        classes=("a", "b"),
    )
    X = store.read(key)
    joined = FeatureTable(
        backbone="generated", stores=(store,), widths=(options.width,), samples=samples, X=X
    )
    print(
        f"interpreter and libraries {base:.2f} GB; features {X.shape}, {X.nbytes / 1e9:.2f} GB; "
        f"peak of reading {_memory('VmHWM'):.2f} GB"
    )
    measured = partial(_measured, base=base, features=X.nbytes / 1e9)
    table = all_heads(
        (CustomHead(name="small_mlp", base="mlp", parameters={"epochs": options.epochs}),)
    )
    done: list[Fitted] = []
    failures: list[Failure] = []
    for head in options.heads.split(","):
        with measured(head):
            plan = Plan(heads=(head,), seeds=tuple(range(options.seeds)), table=table)
            fitted, failed = fit_all(joined, plan)
        done += fitted
        failures += failed
    with measured("all of them again on folds, and compared"):
        compared = table_of(joined, done, CompareOptions(), failures)
    for row in compared.rows:
        if (row.role, row.metric) == (VALIDATION, "accuracy"):
            print(f"{row.head}: accuracy {row.value:.4f} [{row.low:.4f}, {row.high:.4f}]")
    for failure in failures:
        print(f"{failure.head}: {failure.reason}")


@contextmanager
def _measured(what: str, *, base: float, features: float) -> Iterator[None]:
    """Time, and the highest memory of the process while it ran."""
    start = time.perf_counter()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak until now
    yield
    peak = _memory("VmHWM")
    print(
        f"{what}: {time.perf_counter() - start:.0f} s, peak {peak:.2f} GB, "
        f"{(peak - base) / features:.2f} x the features",
        flush=True,
    )


def _memory(name: str) -> float:
    """A line of what Linux says of this process, in GB."""
    status = Path("/proc/self/status").read_text()
    return float(re.search(rf"{name}:\s+(\d+)", status)[1]) * 1024 / 1e9


if __name__ == "__main__":
    main()
