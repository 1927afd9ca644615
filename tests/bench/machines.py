"""What it costs to run stage 1 on machines of Ray: listing, hashing and filling, per image.

    python -m tests.bench.machines [--images 10000 100000] [--blocks 10000 100000 1000000]

Two tables. The first runs the whole stage on generated files of about 350 bytes with a stand-in
network, in this process alone and with ``--ray`` on this machine. The second hands out the blocks
of so many images that are not there to workers that do nothing: what is left is the overhead.
CPU seconds are those of this process and of all that Ray has started. Each run is a process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.data.items import FileStat, Item, in_threads
from pipeline.data.samples import load_samples
from pipeline.data.sources import scan
from pipeline.features import backbones, ray_extract
from pipeline.features.engines import EngineChoice
from pipeline.features.extract import ExtractOptions, extract
from pipeline.study_file import load_study
from tests.image_files import raw_png, rows_of
from tests.tiny import install_tiny_backbone, table_with_tiny

_CLASSES, _IN_FOLDER = 10, 1000
_TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Run each size in a process of its own and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--blocks", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--child", nargs=2)
    options = parser.parse_args()
    if options.child:
        how, images = options.child
        print(json.dumps({"blocks": _hand_out, "alone": _run, "ray": _run}[how](int(images), how)))
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BENCH_FOLDER"] = folder
        print(f"{'images':>9} {'':<6}{'listing':>16}{'hashing':>16}{'filling':>16}   wall (CPU) ms")
        for images in options.images:
            _write(Path(folder) / str(images), images)
            for how in ("alone", "ray"):
                values = _child(how, images)
                cells = "".join(f"{wall:>8.3f} ({cpu:.3f})" for wall, cpu in values)
                print(f"{images:>9,} {how:<6}{cells}", flush=True)
        print(f"\n{'images':>9} {'blocks':>7} {'wall':>8} {'CPU':>8} {'driver':>8}   ms an image")
        for images in options.blocks:
            blocks, wall, cpu, driver = _child("blocks", images)
            print(
                f"{images:>9,} {blocks:>7.0f} {wall:>8.4f} {cpu:>8.4f} {driver:>8.4f}", flush=True
            )


def _child(how: str, images: int) -> list:
    command = [sys.executable, "-m", "tests.bench.machines", "--child", how, str(images)]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}  # the workers import this module
    found = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=environment)
    return json.loads(found.stdout.splitlines()[-1])


def _write(folder: Path, images: int) -> None:
    rng = np.random.default_rng(0)
    for i in range(images):
        place = folder / "here" / f"class{i % _CLASSES}" / f"{i // (_CLASSES * _IN_FOLDER)}"
        if i % (_CLASSES * _IN_FOLDER) < _CLASSES:
            place.mkdir(parents=True)
        pixels = rng.integers(0, 256, (16, 16), np.uint8)
        (place / f"p{i // 5}_{i}.png").write_bytes(raw_png(16, 16, 8, 0, IDAT=rows_of(pixels)))
    (folder / "study.toml").write_text(
        f'name = "many"\n[source]\npath = "{folder}/here"\ngroup = \'(p\\d+)_\'\n[backbone.tiny]\n'
    )


def hook() -> None:
    """Give the stand-in to a worker of Ray."""
    backbones.BACKBONES = table_with_tiny(Path(os.environ["BENCH_FOLDER"]) / "tiny.pth")


def _run(images: int, how: str) -> list[tuple[float, float]]:
    """Milliseconds an image of listing, hashing and filling: of the clock, and of all CPUs."""
    import pytest

    top = Path(os.environ["BENCH_FOLDER"])
    install_tiny_backbone(pytest.MonkeyPatch(), top)
    os.environ["HEADRACE_FEATURES"] = str(top / f"features-{how}-{images}")
    study = load_study(top / str(images) / "study.toml")
    engine = EngineChoice(engine="torch", device="cpu", batch_size=64)
    each, options = in_threads, ExtractOptions(engine=engine)
    if how == "ray":
        _start_ray(worker_process_setup_hook=f"{__spec__.name}.hook")
        each, options = ray_extract.Cluster().each, ExtractOptions(engine=engine, ray="")
        list(each(str, range(8)))  # the processes are there
    listing = _measured(partial(scan, study.source, each))
    both = _measured(partial(load_samples, study, each=each))
    whole = _measured(partial(extract, study, options))
    return [
        tuple(1e3 * (b - a) / images for a, b in zip(before, after, strict=True))
        for before, after in (((0, 0), listing), (listing, both), (listing, whole))
    ]


def _hand_out(images: int, _how: str) -> tuple[float, ...]:
    """Blocks, then milliseconds an image of the clock, of all CPUs and of this process."""
    top, stat = os.environ["BENCH_FOLDER"], FileStat(350, 0, 0, 0)
    names = [f"class{i // 1000}/p{i // 5}_{i}.png" for i in range(images)]
    items = [
        (i.to_bytes(32, "big"), Item(name, "class", f"{top}/{name.partition('/')[2]}", None, stat))
        for i, name in enumerate(names)
    ]
    _start_ray()
    cluster = ray_extract.Cluster()
    list(cluster.each(str, range(8)))
    before = time.process_time()
    share = ray_extract._Share(os.cpu_count(), 1)
    blocks = []

    def hand_out() -> None:
        blocks.extend(ray_extract._blocks(items, share.workers))
        assert sum(map(len, ray_extract._answers(blocks, share, _nothing))) == images

    wall, cpu = _measured(hand_out)
    driver = time.process_time() - before
    return (len(blocks), *(1e3 * seconds / images for seconds in (wall, cpu, driver)))


def _nothing(_value: object) -> None:
    return None


def _start_ray(**runtime_env: str) -> None:
    os.environ.update(ray_extract._SETTINGS)
    import ray

    settings = {"logging_level": "ERROR", "log_to_driver": False, "include_dashboard": False}
    ray.init("local", runtime_env=runtime_env or None, **settings)


def _measured(action) -> tuple[float, float]:
    start, used = time.perf_counter(), _cpu_seconds()
    action()
    return time.perf_counter() - start, _cpu_seconds() - used


def _cpu_seconds() -> float:
    """Of this process and all below it, also of those that have ended."""
    fields = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        fields[int(folder.name)] = int(text[1]), sum(map(int, text[11:15])) / _TICKS
    total, waiting = 0.0, [os.getpid()]
    while waiting:
        parent = waiting.pop()
        total += fields[parent][1]
        waiting += [pid for pid, (above, _) in fields.items() if above == parent]
    return total


if __name__ == "__main__":
    main()
