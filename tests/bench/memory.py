"""Peak memory and time of the commands on 100,000 small images of 20,000 patients, 100 classes.

    python -m tests.bench.memory [--images 100000] [--classes 100] [--width 256]

The images have about 200 bytes, the features are generated: class means in noise. Each
command runs as a child process, so that the peak is its own (Linux). A fifth of the images is
a target. The files were hashed when the store was filled, so ``features`` finds nothing new.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image

from tests.bench import heading, row

COMMANDS = ("features", "heads --quick --only linear --no-figures", "audit", "report")
_PER_PATIENT = 5


def main() -> None:
    """Write a study and its store, then run and measure each command."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("images", 100_000), ("classes", 100), ("width", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--child", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.child:
        _run(options)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _write_study(folder, options.images, options.classes)
        _measure(folder, "fill", options.width)
        heading("command", "wall s", "CPU s", "peak MB")
        for command in COMMANDS:
            row(command, *(f"{of:.1f}" for of in _measure(folder, command, options.width)))


def _write_study(folder: Path, images: int, classes: int) -> None:
    rng = np.random.default_rng(0)
    for i in range(images):
        domain = "there" if i % _PER_PATIENT == 0 else "here"
        patient, label = i // _PER_PATIENT, rng.integers(classes)
        place = folder / domain / f"class{label:03}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 16, (16, 16), np.uint8)
        Image.fromarray(pixels * 16).save(place / f"{domain}{patient:05}_{i}.png")
    (folder / "study.toml").write_text(
        'name = "large"\n[source]\npath = "here"\nignore = []\ngroup = \'^(here\\d+)\'\n'
        "[target.there]\npath = \"there\"\nignore = []\ngroup = '^(there\\d+)'\n"
        '[store]\npath = "features"\n[backbone.tiny]\n'
    )


def _measure(folder: Path, command: str, width: int) -> tuple[float, ...]:
    start = time.perf_counter()
    arguments = ["--width", str(width), "--child", str(folder), *command.split()]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.memory", *arguments], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 3):
        raise SystemExit(f"{command} failed")
    cpu = usage.ru_utime + usage.ru_stime
    return time.perf_counter() - start, cpu, usage.ru_maxrss / 1024


def _run(options: argparse.Namespace) -> None:
    """One command in this process, with a backbone whose features are in the store."""
    import pytest

    from pipeline.cli import main as headrace
    from pipeline.features import backbones
    from tests.tiny import install_tiny_backbone, table_with_tiny

    folder, (name, *flags) = Path(options.child[0]), options.child[1:]
    if name == "fill":
        install_tiny_backbone(pytest.MonkeyPatch(), folder)  # writes its weights
    spec = replace(table_with_tiny(folder / "tiny.pth")["tiny"], dim=options.width)
    backbones.BACKBONES = MappingProxyType({"tiny": spec})
    os.chdir(folder)
    if name == "fill":
        _fill(folder / "study.toml", options.width)
    else:
        headrace([name, "study.toml", *flags])


def _fill(file: Path, width: int) -> None:
    """Features of every image, masked or not: its class's mean in noise."""
    from cache.store import FeatureStore, Writer
    from pipeline.audit.stage import masked_study
    from pipeline.data.samples import load_samples
    from pipeline.features import load
    from pipeline.study_file import load_study

    study = load_study(file)
    samples, _ = load_samples(study)
    rng = np.random.default_rng(1)
    means = 0.5 * rng.normal(size=(len(samples.classes), width))
    for choice in (*study.backbones, *masked_study(study).backbones):
        store = load.store_for(study.store_root, choice)
        store.prepare()
        with Writer(FeatureStore(study.store_root, store.recipe)) as writer:
            for key, label in zip(samples.key, samples.label, strict=True):
                features = means[label] + rng.normal(size=width)
                writer.add(key, features.astype(np.float32))


if __name__ == "__main__":
    main()
