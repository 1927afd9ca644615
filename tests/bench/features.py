"""Measure stage 1 against what a user would otherwise use, in one run on the same files.

    python -m tests.bench.features [--images FOLDER] [--count 1000] [--repeats 3]

For each backbone: (a) a plain torchvision/timm DataLoader loop that saves an .npy, (b) the
engine's bare forward rate, (c) the whole command from image files to committed store, each
in a process of its own, interleaved, with the median of the repeats. (d) is what each further
image costs (c): the time of all images less the time of half of them, so that start-up, which
does not grow with the images, is seen apart. (e) is a second run with ten new images:
start-up alone, from the network that was kept. Then a second run with nothing new over 100,000
small files, and the peak memory for few and for many images.
Random weights serve where none are here: the rate does not depend on them.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

BACKBONES = ("densenet121", "googlenet", "efficientnet_lite0")
GOALS = {"densenet121": 2.0, "googlenet": 2.2, "efficientnet_lite0": 4.5}
LOOP = """
import sys, time, numpy as np, torch, torchvision
from torch.utils.data import DataLoader
from torchvision import transforms as T
name, weights, folder, limit = sys.argv[1:5]
if name == "efficientnet_lite0":
    import timm
    model = timm.create_model("tf_efficientnet_lite0", num_classes=0)
else:
    model = getattr(torchvision.models, name)(weights=None, init_weights=False) \\
        if name == "googlenet" else getattr(torchvision.models, name)(weights=None)
    setattr(model, "fc" if name == "googlenet" else "classifier", torch.nn.Identity())
model.eval().to(memory_format=torch.channels_last)
normalise = T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
t = T.Compose([T.Resize((224, 224)), T.ToTensor(), normalise])
data = torchvision.datasets.ImageFolder(folder, t)
data.samples = data.samples[: int(limit)]
start = time.perf_counter()
rows = []
with torch.no_grad():
    for images, _ in DataLoader(data, batch_size=32, num_workers=2):
        rows.append(model(images.to(memory_format=torch.channels_last)).numpy())
np.save(sys.argv[5], np.concatenate(rows))
print(len(data) / (time.perf_counter() - start))
"""
BARE = """
import sys, time, numpy as np
from collections import deque
from pathlib import Path
from pipeline.features.engines import EngineChoice, start_engine
from pipeline.features.load import frozen_network
from pipeline.study import load_study
choice = load_study(Path(sys.argv[1])).backbones[0]
engine = start_engine(lambda: frozen_network(choice), EngineChoice(), "fp32")
batch = np.random.default_rng(0).integers(0, 256, (engine.batch_size, 224, 224, 3), np.uint8)
def run(batches):
    waiting = deque()
    for _ in range(batches):
        waiting.append(engine.submit(batch))
        if len(waiting) >= engine.depth:
            waiting.popleft()()
    while waiting:
        waiting.popleft()()
run(4)
batches = int(sys.argv[2]) // engine.batch_size
start = time.perf_counter()
run(batches)
print(batches * engine.batch_size / (time.perf_counter() - start))
"""


def main() -> None:
    """Run all measurements and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="class folders; default: generated phantoms")
    parser.add_argument("--count", type=int, default=1000, help="images for the whole command")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--small-files", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        work = Path(name)
        images = _take(options.images or _phantoms(work, options.count), work, options.count)
        print(f"{os.cpu_count()} cores; {_count(images)} images of {images}", flush=True)
        for backbone in BACKBONES:
            _compare(work, images, backbone, options.repeats)
        _memory(work, images)
        _second_run(work, options.small_files)


def _phantoms(work: Path, count: int) -> Path:
    from pipeline.demo import DemoSpec, write_demo

    write_demo(work / "demo", DemoSpec(n_source=count, n_target=10))
    return work / "demo" / "hospital_a"


def _take(folder: Path, work: Path, count: int) -> Path:
    """The first images of each class, so that all three measure the same files."""
    for kind in sorted(p for p in folder.iterdir() if p.is_dir()):
        target = work / "images" / kind.name
        target.mkdir(parents=True)
        for file in sorted(f for f in kind.rglob("*") if f.is_file())[: count // 2]:
            shutil.copy(file, target / file.name)
    return work / "images"


def _count(folder: Path) -> int:
    return sum(f.is_file() for f in folder.rglob("*"))


def _study(work: Path, images: Path, backbone: str) -> Path:
    file = work / f"{backbone}.toml"
    weights = _random_weights(work, backbone)
    file.write_text(
        f'name = "bench"\n[source]\npath = "{images}"\n[store]\npath = "store"\n'
        f"[backbone.{backbone}]\n" + (f'weights = "{weights}"\n' if weights else "")
    )
    return file


def _random_weights(work: Path, backbone: str) -> Path | None:
    if backbone == "efficientnet_lite0":
        return None
    import torch
    import torchvision

    file = work / f"{backbone}.pth"
    extra = {"init_weights": False} if backbone == "googlenet" else {}
    torch.manual_seed(0)
    torch.save(getattr(torchvision.models, backbone)(weights=None, **extra).state_dict(), file)
    return file


def _compare(work: Path, images: Path, backbone: str, repeats: int) -> None:
    study = _study(work, images, backbone)
    count = _count(images)
    half = work / "half"
    if not half.exists():
        _take_into(images, half, count // 2)
    loop, bare, whole, further = [], [], [], []
    for _ in range(repeats):
        few = str(max(64, count // 4))
        loop.append(_rate("-c", LOOP, backbone, "", str(images), few, str(work / "loop.npy")))
        bare.append(_rate("-c", BARE, str(study), str(count // 2)))
        seconds = _command(work, study)
        shorter = _command(work, _study(work, half, backbone))
        whole.append(count / seconds)
        further.append((count - _count(half)) / (seconds - shorter))
        _study(work, images, backbone)
    _command(work, study)
    cpu, seconds = _ten_new(images, study)
    mid = statistics.median
    print(
        f"{backbone:20} loop {mid(loop):6.1f}/s  bare engine {mid(bare):6.1f}/s  "
        f"whole command {mid(whole):6.1f}/s  further images {mid(further):6.1f}/s | "
        f"whole/loop {mid(_ratios(whole, loop)):.2f} (goal {GOALS[backbone]}), "
        f"whole/bare {mid(_ratios(whole, bare)):.2f}, "
        f"further/bare {mid(_ratios(further, bare)):.2f} (goal 0.95) | "
        f"ten new images {seconds:.1f} s, {cpu:.1f} CPU seconds (goal 4)",
        flush=True,
    )


def _command(work: Path, study: Path) -> float:
    """Seconds of the whole command, from nothing to a committed store."""
    shutil.rmtree(work / "store", ignore_errors=True)
    start = time.perf_counter()
    report = json.loads(_run("-m", "pipeline.cli", "features", str(study), "--json"))
    assert report["backbones"][0]["reused"] == 0
    return time.perf_counter() - start


def _ten_new(images: Path, study: Path) -> tuple[float, float]:
    """CPU seconds, and seconds, of a run in which all but ten images are stored."""
    kind = next(images.iterdir())
    new = [file.with_name(f"mirrored_{file.stem}.png") for file in sorted(kind.iterdir())[:10]]
    for file, name in zip(sorted(kind.iterdir()), new, strict=False):
        ImageOps.mirror(Image.open(file)).save(name)
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    report = json.loads(_run("-m", "pipeline.cli", "features", str(study), "--json"))
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert report["backbones"][0]["computed"] == len(new)
    for name in new:
        name.unlink()
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, seconds


def _ratios(a: list[float], b: list[float]) -> list[float]:
    return [x / y for x, y in zip(a, b, strict=True)]


def _memory(work: Path, images: Path) -> None:
    study = _study(work, images, "efficientnet_lite0")
    peaks = []
    for count in (16, _count(images)):
        few = work / f"few{count}"
        _take_into(images, few, count)
        own = work / f"memory{count}.toml"
        own.write_text(study.read_text().replace(str(images), str(few)))
        shutil.rmtree(work / "store", ignore_errors=True)
        code = (
            "import resource; from pipeline.cli import main; main(standalone_mode=False);"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        out = _run("-c", code, "features", str(own))
        peaks.append(int(out.splitlines()[-1]) / 1024)
    print(
        f"peak memory: {peaks[0]:.0f} MB for 16 images (network and libraries), "
        f"{peaks[1]:.0f} MB for {_count(images)}: {peaks[1] - peaks[0]:.0f} MB more (goal < 2048)",
        flush=True,
    )


def _take_into(images: Path, target: Path, count: int) -> None:
    for kind in images.iterdir():
        (target / kind.name).mkdir(parents=True)
        for file in sorted(kind.iterdir())[: count // 2]:
            shutil.copy(file, target / kind.name / file.name)


def _second_run(work: Path, count: int) -> None:
    """The store is filled with made-up rows: only finding that nothing is new is timed."""
    import hashlib

    from cache.store import Writer
    from pipeline.features.load import store_for
    from pipeline.study import load_study

    folder = work / "small"
    rng = np.random.default_rng(0)
    keys = []
    for i in range(count):
        kind = folder / f"class{i % 2}"
        kind.mkdir(parents=True, exist_ok=True)
        data = rng.bytes(200)
        (kind / f"p{i:06}.png").write_bytes(data)
        keys.append(hashlib.sha256(data).digest())
    study = _study(work, folder, "efficientnet_lite0")
    loaded = load_study(study)
    store = store_for(loaded, loaded.backbones[0])
    store.prepare()
    with Writer(store) as writer:
        for start in range(0, count, 1000):
            rows = rng.normal(size=(1000, 1280)).astype(np.float32)
            for key, row in zip(keys[start : start + 1000], rows, strict=False):
                writer.add(key, row)
    time.sleep(1.1)  # files written within the index's own clock tick are not believed
    for run in ("first", "second"):
        start = time.perf_counter()
        report = json.loads(_run("-m", "pipeline.cli", "features", str(study), "--json"))
        seconds = time.perf_counter() - start
        assert report["backbones"][0]["computed"] == 0
        print(f"{count} small files, nothing new, {run} run: {seconds:.2f} s", flush=True)


def _rate(*arguments: str) -> float:
    return float(_run(*arguments).split()[-1])


def _run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{arguments[-3:]} failed:\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
