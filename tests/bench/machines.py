"""What it costs to run stage 1 on machines of Ray: listing, hashing and filling, per image.

    python -m tests.bench.machines [--images 10000 100000] [--blocks 10000 100000 1000000]

Two tables of CPU time, of this process and of all that Ray has started. Each row is a process of
its own. It first does the same with a hundred images, which is the cost of the start; what the
others cost beyond it is given per image. A ``?`` is not measurable with so few images. The first
table runs the whole stage on generated files of about 350 bytes with a stand-in network, in this
process alone and with ``--ray`` on this machine. The second hands out the blocks of so many images
that are not there to workers that do nothing: what is left is the overhead of Ray.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.data.items import FileStat, Item
from pipeline.data.samples import load_samples
from pipeline.data.sources import scan
from pipeline.features import backbones, ray_extract
from pipeline.features.engines import EngineChoice
from pipeline.features.extract import extract
from pipeline.parallel import Mapper, in_threads
from pipeline.study import Study
from pipeline.study_file import load_study
from tests.image_files import raw_png, rows_of
from tests.tiny import install_tiny_backbone, table_with_tiny

_CLASSES, _IN_FOLDER = 10, 1000
#: Images whose cost is that of the start, the least of so many runs.
_FEW, _STARTS = 100, 3
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
        _write(Path(folder) / str(_FEW), _FEW)
        _print_row("images", "", "start s", "listing", "hashing", "filling   CPU ms an image")
        for images in options.images:
            _write(Path(folder) / str(images), images)
            for how in ("alone", "ray"):
                _print_row(images, how, *_child(how, images))
        _print_row("images", "blocks", "start s", "all", "of it the driver   CPU ms an image")
        for images in options.blocks:
            _print_row(images, *_child("blocks", images))


def _print_row(*cells: object) -> None:
    # A cost below 0 is lost in the variation of the start: there are too few images.
    texts = [("?" if c < 0 else f"{c:.4f}") if isinstance(c, float) else str(c) for c in cells]
    print("".join(f"{text:>10}" for text in texts), flush=True)


def _child(how: str, images: int) -> list[float]:
    command = [sys.executable, "-m", "tests.bench.machines", "--child", how, str(images)]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}  # the workers import this module
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def _write(folder: Path, images: int) -> None:
    rng = np.random.default_rng(0)
    for i in range(images):
        place = folder / "here" / f"class{i % _CLASSES}" / f"{i // (_CLASSES * _IN_FOLDER)}"
        if i % (_CLASSES * _IN_FOLDER) < _CLASSES:
            place.mkdir(parents=True)
        pixels = rng.integers(0, 256, (16, 16), np.uint8)
        (place / f"p{i // 5}_{i}.png").write_bytes(raw_png(16, 16, 8, 0, IDAT=rows_of(pixels)))
    (folder / "study.toml").write_text(
        f'name = "many"\n[source]\npath = "{folder}/here"\nignore = []\n'
        "group = '(p\\d+)_'\n[backbone.tiny]\n"
    )


def hook() -> None:
    """Give the stand-in to a worker of Ray."""
    backbones.BACKBONES = table_with_tiny(Path(os.environ["BENCH_FOLDER"]) / "tiny.pth")


def _run(images: int, how: str) -> list[float]:
    """Seconds to start, then milliseconds an image of listing, hashing and filling."""
    import pytest

    install_tiny_backbone(pytest.MonkeyPatch(), Path(os.environ["BENCH_FOLDER"]))
    engine = EngineChoice(engine="torch", device="cpu", batch_size=64)
    mapper, fill = in_threads, partial(extract, engine=engine)
    if how == "ray":
        _start_ray(worker_process_setup_hook=f"{__spec__.name}.hook")
        mapper, fill = ray_extract.in_tasks, partial(ray_extract.extract, engine=engine)
    _steps(_FEW, how, mapper, fill)  # the processes are there
    start = np.min([_steps(_FEW, how, mapper, fill) for _ in range(_STARTS)], axis=0)
    costs = np.subtract(_steps(images, how, mapper, fill), start) / (images - _FEW)
    return [float(start.sum()), *(1e3 * costs).tolist()]


def _steps(images: int, how: str, mapper: Mapper, fill: Callable[[Study], object]) -> list[float]:
    """CPU seconds of listing, hashing and filling."""
    top = Path(os.environ["BENCH_FOLDER"])
    os.environ["HEADRACE_FEATURES"] = str(top / f"features-{how}-{images}")
    study = load_study(top / str(images) / "study.toml")
    listing = _cpu_of(partial(scan, study.source, mapper))
    shutil.rmtree(study.store_root, ignore_errors=True)
    both = _cpu_of(partial(load_samples, study, mapper=mapper))
    shutil.rmtree(study.store_root, ignore_errors=True)
    whole = _cpu_of(partial(fill, study))
    return [listing, both - listing, whole - both]


def _hand_out(images: int, _how: str) -> list[float]:
    """Blocks, seconds to start, then milliseconds an image: of all CPUs, and of this process."""
    top, stat = os.environ["BENCH_FOLDER"], FileStat(350, 0, 0, 0)
    names = [f"class{i // 1000}/p{i // 5}_{i}.png" for i in range(images)]
    items = [
        (i.to_bytes(32, "big"), Item(name, "class", f"{top}/{name.partition('/')[2]}", None, stat))
        for i, name in enumerate(names)
    ]
    _start_ray()
    share = ray_extract._Share(os.cpu_count(), 1)
    blocks = []

    def hand_out(items: Sequence[tuple[bytes, Item]]) -> None:
        blocks[:] = ray_extract._blocks(items, share.workers)
        assert sum(map(len, ray_extract._answers(blocks, share, _nothing))) == len(items)

    hand_out(items[:_FEW])  # the processes are there
    start = min(_cpu_of(partial(hand_out, items[:_FEW])) for _ in range(_STARTS))
    before = time.process_time()
    cpu = _cpu_of(partial(hand_out, items))
    driver = time.process_time() - before
    return [len(blocks), start, *(1e3 * s / images for s in (cpu - start, driver))]


def _nothing(block: Sequence[object]) -> list[None]:
    return [None] * len(block)


def _start_ray(**runtime_env: str) -> None:
    os.environ.update(ray_extract._SETTINGS)
    import ray

    settings = {"logging_level": "ERROR", "log_to_driver": False, "include_dashboard": False}
    ray.init("local", runtime_env=runtime_env or None, **settings)


def _cpu_of(action: Callable[[], object]) -> float:
    used = _cpu_seconds()
    action()
    return _cpu_seconds() - used


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
