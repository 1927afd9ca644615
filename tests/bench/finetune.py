"""Measure fine-tuning: all weights, and the last block from the store, beside a plain loop.

    python -m tests.bench.finetune [--device cuda] [--precision bf16] [--batch-size 128]
        [--images 128] [--steps 3] [--epochs 5] [--size 224]

For each backbone, on the same generated images: (a) a plain torch loop over all weights, with
the pixels in memory, channels_last and the same precision, as a user would write it; (b) ``full``
by the stage's own loop; (c) what it takes to have the activations at the cut, once; (d)
``last_block`` from these. The fastest pass over the images counts, because everything else is
other work. Random weights serve: the rate does not depend on them.
"""

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.data.samples import load_samples
from pipeline.finetune.distributed import autocast
from pipeline.finetune.loop import train
from pipeline.finetune.methods import REFERENCE_BATCH
from pipeline.finetune.networks import training_loss
from pipeline.finetune.runs import Experiment
from pipeline.progress import Progress
from pipeline.report.table import Column, Table, to_terminal
from pipeline.study import Study, load_study

#: How many times the images/s of ``full`` those of ``last_block`` should be.
GOALS = {"densenet121": 20.0, "googlenet": None}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all measurements and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", default="fp32", help="fp32, tf32 or bf16")
    parser.add_argument("--batch-size", type=int, default=REFERENCE_BATCH)
    parser.add_argument("--images", type=int, default=128, help="generated phantoms")
    parser.add_argument("--steps", type=int, default=3, help="of full, in each of two passes")
    parser.add_argument("--epochs", type=int, default=5, help="of last_block")
    parser.add_argument("--size", type=int, default=224, help="side of the images, pixels")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        images = _phantoms(Path(name), options.images)
        rows = [
            (backbone, goal, *_measure(_study(Path(name), images, backbone), options))
            for backbone, goal in GOALS.items()
        ]
    columns = (
        Column("backbone"),
        Column("goal", kind="count"),
        Column("last_block / full", kind="seconds"),
        Column("plain loop, images/s", kind="seconds"),
        Column("full, images/s", kind="seconds"),
        Column("last_block, images/s", kind="seconds"),
        Column("activations, once"),
    )
    title = (
        f"{options.device}, {os.cpu_count()} cores, {options.precision}; batches of "
        f"{options.batch_size}, {options.size} x {options.size} pixels"
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


def _measure(study: Study, options: argparse.Namespace) -> tuple[Any, ...]:
    run = Experiment(
        study=study,
        choice=study.backbones[0],
        samples=load_samples(study)[0],
        given={"batch_size": options.batch_size, "precision": options.precision},
        image_size=options.size,
        folder=study.store_root,
        device=options.device,
    )
    images = min(len(run.samples), options.steps * options.batch_size)
    plain, full = _plain_rate(run, images), _rate(run, "full", images, 2)
    stored = run.stored(at_cut=True)
    last_block = _rate(run, "last_block", len(run.samples), options.epochs)
    once = f"{stored.computed} in {stored.seconds:.1f} s"
    return last_block / full, plain, full, last_block, once


def _rate(run: Experiment, name: str, images: int, epochs: int) -> float:
    """Images/s of the fastest pass."""
    history = train(
        run.assemble(name).trained,
        run.examples(name).take(np.arange(images)),
        None,
        replace(run.settings(name), epochs=epochs),
        progress=Progress(f"{name}, {run.choice.name}"),
    )
    return max(row.images_per_second for row in history.rows)


def _plain_rate(run: Experiment, images: int) -> float:
    """The same of a loop without anything beside the steps."""
    settings = run.settings("full")
    network = run.assemble("full").trained.to(run.device, memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate)
    pixels, label = run.pixels.values.cpu()[:images], torch.from_numpy(run.samples.label[:images])
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        for first in range(0, images, settings.batch_size):
            rows = slice(first, first + settings.batch_size)
            with autocast(settings):
                output = network(pixels[rows].to(run.device))
            loss = training_loss(output, label[rows].to(run.device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        loss.item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return images / min(seconds)


if __name__ == "__main__":
    main()
