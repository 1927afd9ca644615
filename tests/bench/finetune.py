"""Measure fine-tuning: all weights, and the last block from the store, beside a plain loop.

    python -m tests.bench.finetune [--device cuda] [--precision bf16] [--batch-size 128]
        [--images 128] [--steps 3] [--epochs 5] [--size 224] [--compile]

On the same generated images, by backbone: (a) a plain torch loop over all weights with what a
careful user adds (pixels on the device, channels_last, the same precision, measured cuDNN
algorithms, the fused optimiser); (b) ``full`` by the stage's own loop; (c) what it takes to have
the activations at the cut, once; (d) ``last_block`` from these. The fastest pass over the images
counts, because everything else is other work. Random weights serve: the rate does not depend on
them. Each number is printed as soon as it is known.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pipeline.data.samples import load_samples
from pipeline.demo import write_demo
from pipeline.finetune.distributed import autocast, torch_settings
from pipeline.finetune.loop import train
from pipeline.finetune.networks import training_loss
from pipeline.finetune.runs import Experiment
from pipeline.study import Study
from pipeline.study_file import load_study
from tests.bench.features import write_study

BACKBONES = ("densenet121", "googlenet")
#: Precision, images a step, steps a pass and generated images, where none are given.
DEFAULTS = {"cpu": ("fp32", 32, 3, 128), "cuda": ("bf16", 128, 8, 256)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all measurements and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=list(DEFAULTS))
    parser.add_argument("--backbone", action="append", help="default: all")
    parser.add_argument("--precision", help="fp32, tf32 or bf16")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--images", type=int, help="generated phantoms; steps repeat them")
    parser.add_argument("--steps", type=int, help="of full and the plain loop, in each pass")
    parser.add_argument("--epochs", type=int, default=5, help="of last_block")
    parser.add_argument("--size", type=int, default=224, help="side of the images, pixels")
    parser.add_argument("--compile", action="store_true", help="full through torch.compile too")
    options = parser.parse_args(arguments)
    precision, batch_size, steps, images = DEFAULTS[options.device]
    options.precision = options.precision or precision
    options.batch_size = options.batch_size or batch_size
    options.steps, options.images = options.steps or steps, options.images or images
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    print(
        f"{name}, {os.cpu_count()} cores, {options.precision}, batches of {options.batch_size}, "
        f"{options.size} x {options.size} pixels",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        write_demo(Path(folder, "demo"), n_source=options.images, n_target=1)
        for backbone in options.backbone or BACKBONES:
            images = Path(folder, "demo", "hospital_a")
            study = load_study(write_study(Path(folder), images, backbone))
            for line in _measure(study, options):
                print(f"{backbone:<12} {line}", flush=True)


def _measure(study: Study, options: argparse.Namespace) -> Iterator[str]:
    run = Experiment(
        study=study,
        choice=study.backbones[0],
        samples=load_samples(study)[0],
        given={"batch_size": options.batch_size, "precision": options.precision},
        image_size=options.size,
        folder=study.store_root,
        device=options.device,
    )
    rows = np.arange(options.steps * options.batch_size) % len(run.samples)
    plain = _plain_rate(run, rows)
    yield f"plain loop      {plain:9.1f} images/s"
    full = _rate(run, "full", rows, epochs=2)
    yield f"full            {full:9.1f} images/s, {full / plain:.2f} x the plain loop"
    if options.compile:
        start = time.perf_counter()
        run.given = {**run.given, "compile": True}
        rate = _rate(run, "full", rows, epochs=2)
        seconds = time.perf_counter() - start
        yield f"full, compiled  {rate:9.1f} images/s, {rate / plain:.2f} x; {seconds:.0f} s in all"
        run.given = {**run.given, "compile": False}
    start = time.perf_counter()
    stored = run.examples("last_block")
    yield f"activations     {len(stored):9d} images in {time.perf_counter() - start:.1f} s, once"
    last = _rate(run, "last_block", np.arange(len(run.samples)), epochs=options.epochs)
    yield f"last_block      {last:9.1f} images/s, {last / full:.1f} x full"


def _rate(run: Experiment, name: str, rows: np.ndarray, *, epochs: int) -> float:
    """Images/s of the fastest pass."""
    settings = replace(run.settings(name), epochs=epochs)
    examples = run.examples(name).take(rows)
    first = examples.take(np.arange(1))  # to validate on
    epoch_rows = train(run.assemble(name).trained, examples, first, settings)
    return max(row.images_per_second for row in epoch_rows)


def _plain_rate(run: Experiment, rows: np.ndarray) -> float:
    """The same of a loop without anything beside the steps."""
    settings, device = run.settings("full"), run.device
    network = run.assemble("full").trained.to(device, memory_format=torch.channels_last).train()
    fused = True if device == "cuda" else None
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, fused=fused)
    pixels = run.examples("full").values.to(device)
    labels = torch.from_numpy(run.samples.label).to(device)
    steps = np.split(rows, len(rows) // settings.batch_size)
    batches = [torch.from_numpy(step).to(device) for step in steps]
    seconds = []
    with torch_settings(settings):
        torch.backends.cudnn.benchmark = True
        for _ in range(2):
            start = time.perf_counter()
            for batch in batches:
                with autocast(settings):
                    loss = training_loss(network(pixels[batch]), labels[batch])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            loss.item()  # waits for the device
            seconds.append(time.perf_counter() - start)
    return len(rows) / min(seconds)


if __name__ == "__main__":
    main()
