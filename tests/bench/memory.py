"""Peak memory of stage 2's heads on many rows, read from a real store.

    python -m tests.bench.memory [--rows 200000] [--width 1024] [--epochs 3] [--seeds 1]

Inner selection and all, as in a comparison; but the perceptrons are trained for few epochs,
since each costs the same again and no memory.

The store is written into a temporary folder first; a child process reads it and fits, so
that the peak is the comparison's own.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from cache import FeatureStore, Recipe, Writer
from pipeline.fitting import Plan, fit_all
from pipeline.heads.named import NamedHead, heads_with
from pipeline.joined import JoinedFeatures
from pipeline.samples import Samples
from pipeline.sources import Item

HEADS = ("linear", "ridge", "prototype")
RECIPE = Recipe(
    backbone="generated", cut="none", pooling="none", weights="0" * 64,
    preprocessing={}, precision="fp32",
)  # fmt: skip


def main() -> None:
    """Write the store, then fit in a child and print its peak."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("rows", 200_000), ("width", 1024), ("epochs", 3), ("seeds", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
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
    n = options.rows
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
    joined = JoinedFeatures(
        backbone="generated", stores=(store,), widths=(options.width,), samples=samples, X=X
    )
    print(f"features {X.shape}, {X.nbytes / 1e9:.2f} GB; peak after reading {_peak():.2f} GB")
    table = heads_with(
        (NamedHead(name="small_mlp", base="mlp", parameters={"epochs": options.epochs}),)
    )
    for head in (*HEADS, "small_mlp"):
        start, cpu = time.perf_counter(), time.process_time()
        plan = Plan(heads=(head,), seeds=tuple(range(options.seeds)), table=table)
        done, failed = fit_all(joined, plan)
        hits = [round(float((d.proba.argmax(1) == samples.label).mean()), 4) for d in done]
        said = json.dumps([f.reason for f in failed] or hits)
        print(
            f"{head}: {time.perf_counter() - start:.0f} s, "
            f"{time.process_time() - cpu:.0f} s of all cores, {said}, peak {_peak():.2f} GB",
            flush=True,
        )


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
