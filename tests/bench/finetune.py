"""Measure partial fine-tuning from the store against fine-tuning end to end, in one run.

    python -m tests.bench.finetune [--images 128] [--steps 3] [--epochs 5] [--size 224]

For each backbone, by the stage's own loop on the same generated images: (a) ``full`` for a
few steps; (b) what it takes to have the activations at the cut, once; (c) ``last_block``
from these, for several epochs. The fastest pass over the images counts, because everything
else is other work. Random weights serve: the rate does not depend on them.
"""

import argparse
import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.data.samples import load_samples
from pipeline.finetune.loop import train
from pipeline.finetune.runs import Experiment
from pipeline.progress import Progress
from pipeline.report.table import Column, Table, to_terminal
from pipeline.study import Study, load_study

#: How many times the images/s of ``full`` those of ``last_block`` should be.
GOALS = {"densenet121": 20.0, "googlenet": None}
BATCH = 32


@dataclass(frozen=True)
class Rates:
    """Of one backbone: images/s of both methods; images and seconds of the activations."""

    full: float
    last_block: float
    taken: int
    seconds: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all measurements and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=128, help="generated phantoms")
    parser.add_argument("--steps", type=int, default=3, help="of full, in each of two passes")
    parser.add_argument("--epochs", type=int, default=5, help="of last_block")
    parser.add_argument("--size", type=int, default=224, help="side of the images, pixels")
    options = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        images = _phantoms(Path(name), options.images)
        for backbone, goal in GOALS.items():
            run = _run(_study(Path(name), images, backbone), options.size)
            found = _measure(run, options.steps, options.epochs)
            times = found.last_block / found.full
            once = f"{found.taken} in {found.seconds:.1f} s"
            rows.append((backbone, found.full, found.last_block, times, goal, once))
    columns = (
        Column(name="backbone"),
        Column(name="full, images/s", kind="seconds"),
        Column(name="last_block, images/s", kind="seconds"),
        Column(name="times", kind="seconds"),
        Column(name="goal", kind="count"),
        Column(name="activations, once"),
    )
    title = (
        f"{os.cpu_count()} cores; images/s of training, batches of {BATCH}, "
        f"{options.size} x {options.size} pixels"
    )
    print(to_terminal(Table(title=title, columns=columns, rows=tuple(rows))))


def _phantoms(work: Path, count: int) -> Path:
    from pipeline.demo import DemoSpec, write_demo

    write_demo(work / "demo", DemoSpec(n_source=count, n_target=1))
    return work / "demo" / "hospital_a"


def _study(work: Path, images: Path, backbone: str) -> Study:
    weights = _random_weights(work, backbone)
    file = work / f"{backbone}.toml"
    file.write_text(
        f'name = "bench"\n[source]\npath = "{images}"\ngroup = \'^(patient\\d+)\'\n'
        f'[store]\npath = "store"\n'
        f'[backbone.{backbone}]\nweights = "{weights}"\n'
    )
    return load_study(file)


def _random_weights(work: Path, backbone: str) -> Path:
    """Also of GoogLeNet's auxiliary classifiers, which full fine-tuning trains."""
    import torch
    import torchvision

    file = work / f"{backbone}.pth"
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of GoogLeNet's initial weights, which are slow
        network = getattr(torchvision.models, backbone)(weights=None)
    torch.save(network.state_dict(), file)
    return file


def _run(study: Study, size: int) -> Experiment:
    samples, _ = load_samples(study)
    return Experiment(
        study=study,
        choice=study.backbones[0],
        samples=samples,
        given={"batch_size": BATCH},
        image_size=size,
        folder=study.store_root,
    )


def _measure(run: Experiment, steps: int, epochs: int) -> Rates:
    everything = len(run.samples)
    full = _rate(run, "full", images=min(everything, steps * BATCH), epochs=2)
    stored = run.stored(at_cut=True)
    return Rates(
        full=full,
        last_block=_rate(run, "last_block", images=everything, epochs=epochs),
        taken=stored.computed,
        seconds=stored.seconds,
    )


def _rate(run: Experiment, name: str, *, images: int, epochs: int) -> float:
    """Images/s of the fastest pass."""
    history = train(
        run.assemble(name).trained,
        run.examples(name).take(np.arange(images)),
        None,
        replace(run.settings(name), epochs=epochs),
        progress=Progress(f"{name}, {run.choice.name}"),
    )
    return max(row.images_per_second for row in history.rows)


if __name__ == "__main__":
    main()
