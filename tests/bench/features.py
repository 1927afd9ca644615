"""Measure stage 1 against what a user would otherwise use, in one run on the same files.

    python -m tests.bench.features [--device cuda] [--scale 1.0]

Each command and each plain torchvision or timm DataLoader loop (channels_last, all cores) is a
process of its own, from its start to its end. Four questions:

- first run: few images, a network that was never met;
- many images beside the engine alone on pixels in memory, start-up included: in a first run,
  which converts the network, and in a second one on new images, for which it is kept;
- further: what each further image of full size costs, by the time of many less that of few,
  beside decoding as Pillow does it to RGB, and with ``resize = "fast"``;
- again: ten new images in a store that is there, and whether torch was imported.

Random weights serve where none are here: the rate does not depend on them.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.features.engines import Engine
from tests.bench import heading, row

LITE = "efficientnet_lite0"
LOOP = """
import os, sys, time, torch, torchvision
from torch.utils.data import DataLoader
from torchvision import transforms as T
name, folder, limit, device, precision = sys.argv[1:6]
if name == "efficientnet_lite0":
    import timm
    model = timm.create_model("tf_efficientnet_lite0", num_classes=0)
else:
    extra = {"init_weights": False} if name == "googlenet" else {}
    model = getattr(torchvision.models, name)(weights=None, **extra)
    setattr(model, "fc" if name == "googlenet" else "classifier", torch.nn.Identity())
model.eval().to(device, memory_format=torch.channels_last)
torch.backends.cudnn.benchmark = True
normalise = T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
t = T.Compose([T.Resize((224, 224)), T.ToTensor(), normalise])
data = torchvision.datasets.ImageFolder(folder, t)
data.samples = data.samples[: int(limit)]
cuda = device == "cuda"
loader = DataLoader(data, batch_size=128 if cuda else 32, num_workers=os.cpu_count(),
                    pin_memory=cuda, prefetch_factor=4)
start = time.perf_counter()
rows = []
bf16 = torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16")
with torch.inference_mode(), bf16:
    for images, _ in loader:
        images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
        rows.append(model(images).float().cpu().numpy())
print(len(data) / (time.perf_counter() - start))
"""
BARE = """
import sys, numpy as np
from pathlib import Path
from pipeline.features.engines import EngineChoice, start_engine
from pipeline.features.load import frozen_network
from pipeline.study_file import load_study
from tests.bench.features import engine_rate
choice = load_study(Path(sys.argv[1])).backbones[0]
engine = start_engine(lambda: frozen_network(choice), EngineChoice(device=sys.argv[3]), "fp32")
batch = np.random.default_rng(0).integers(0, 256, (engine.batch_size, 224, 224, 3), np.uint8)
print(engine_rate(engine, batch, seconds=float(sys.argv[2])))
engine.close()
"""
COMMAND = """
import sys
from pipeline.data import images
if sys.argv.pop(1) == "pillow":
    images._decoded_jpeg = lambda image, at_least: image.convert("RGB")
import pipeline.cli
pipeline.cli.main(standalone_mode=False)
print("torch" in sys.modules, file=sys.stderr)
"""


def main() -> None:
    """Run all measurements and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the images")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, {options.device}\n", flush=True)
    heading("question", "images", "beside", "ratio", "goal")
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        _measure(_Bench(Path(name), options))


def _measure(bench: "_Bench") -> None:
    for backbone, kind, goal in (("densenet121", "small", 1.5), (LITE, "large", 2.5)):
        loop, whole = bench.loop(backbone, kind, 300), bench.new_images(backbone, kind, 300)
        images, beside = f"{bench.count(300)} in {whole:.1f} s", f"plain loop {loop:.1f} s"
        row(f"first run, {backbone}, {kind}", images, beside, _ratio(loop, whole), goal)
    for backbone in ("densenet121", LITE):
        count, bare = bench.count(2000), bench.bare(backbone)
        beside = f"engine alone {bare:.1f}/s"
        for run, goal in (("first run, converts the network", 0.95), ("converted", "")):
            rate = count / bench.new_images(backbone, "small", 2000, converted=run == "converted")
            question = f"{count} of 224 px, {run}, {backbone}"
            row(question, f"{rate:.1f}/s", beside, _ratio(rate, bare), goal)
    pillow = bench.further(LITE, how="pillow")
    for resize, goal in (("stretch", 1.6), ("fast", 2.5)):
        rate = bench.further(LITE, resize=resize)
        question = f"further full size, {LITE}, {resize}"
        beside = f"by Pillow to RGB {pillow:.1f}/s"
        row(question, f"{rate:.1f}/s", beside, _ratio(rate, pillow), goal)
    seconds, torch = bench.again(LITE)
    row(f"ten new images, {LITE}", f"{seconds:.1f} s", f"torch imported: {torch}", "", "4 s")


def _ratio(rate: float, beside: float) -> str:
    """None where too few images were measured for a rate."""
    return f"{rate / beside:.2f}" if rate > 0 < beside else "-"


class _Bench:
    """Runs commands on generated pictures in a folder."""

    def __init__(self, work: Path, options: argparse.Namespace) -> None:
        self._work, self._options = work, options

    def count(self, images: int) -> int:
        return max(4, int(images * self._options.scale)) // 4 * 4

    def loop(self, backbone: str, kind: str, images: int) -> float:
        """Seconds of the plain loop."""
        folder = self._images(kind, images)
        given = [backbone, folder, self.count(images), self._options.device, "fp32"]
        return _timed("-c", LOOP, *given)[0]

    def new_images(
        self, backbone: str, kind: str, images: int, *, converted: bool = False
    ) -> float:
        """Seconds of the command on images that were never met, and unless converted a network."""
        store, folder = self._work / "store", self._images(kind, images)
        study = write_study(self._work, folder, backbone)
        for path in [*store.glob("*"), *store.glob("index/*")]:
            if not converted or path.name not in ("index", "networks", "weights.json"):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return self._command(study)[0]

    def bare(self, backbone: str) -> float:
        """Images a second of the engine on pixels in memory."""
        study = write_study(self._work, self._images("small", 4), backbone)
        given = ["-c", BARE, study, 10 * self._options.scale, self._options.device]
        return float(_timed(*given)[1].stdout)

    def further(self, backbone: str, *, resize: str = "stretch", how: str = "ours") -> float:
        """Images a second of full size, by the time of 300 less that of 60, once converted."""
        few, many = 60, 300
        seconds = {}
        for images in (few, few, many):
            study = write_study(self._work, self._images("large", images), backbone, resize=resize)
            for store in (self._work / "store").glob(f"{backbone}*"):
                shutil.rmtree(store)
            seconds[images] = self._command(study, how)[0]
        beyond = seconds[many] - seconds[few]
        return (self.count(many) - self.count(few)) / beyond if beyond > 0 else 0.0

    def again(self, backbone: str) -> tuple[float, str]:
        """Seconds of a run with ten new images, and whether torch was imported."""
        folder = self._images("large", 300)
        study = write_study(self._work, folder, backbone)
        self._command(study)
        for number, file in enumerate(sorted(folder.rglob("*.jpg"))[:10]):
            with Image.open(file) as image:
                turned = image.rotate(180)
            turned.save(file.with_name(f"new{number}_0.jpg"), quality=90)
        seconds, done = self._command(study)
        return seconds, done.stderr.split()[-1]

    def _command(
        self, study: Path, how: str = "ours"
    ) -> tuple[float, "subprocess.CompletedProcess[str]"]:
        given = ["features", study, "--device", self._options.device]
        return _timed("-c", COMMAND, how, *given)

    def _images(self, kind: str, images: int) -> Path:
        """Pictures of 224 pixels in colour, or of full size in grey."""
        count = self.count(images)
        folder = self._work / f"{kind}-{count}"
        if not folder.exists():
            write_pictures(folder, *((224, "RGB") if kind == "small" else (1600, "L")), count)
        return folder


def _timed(*given: object) -> tuple[float, "subprocess.CompletedProcess[str]"]:
    """Seconds of a Python process from its start to its end."""
    start = time.perf_counter()
    command = [sys.executable, *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command[-3:]} failed:\n{done.stderr}")
    return time.perf_counter() - start, done


def engine_rate(engine: Engine, batch: np.ndarray, *, seconds: float) -> float:
    """Images a second of an engine that gets one batch again and again."""

    def run(seconds: float) -> float:
        done, waiting, start = 0, deque(), time.perf_counter()
        while time.perf_counter() - start < seconds:
            waiting.append(engine.submit(batch))
            if len(waiting) >= engine.depth:
                waiting.popleft()()
                done += 1
        for wait in waiting:
            wait()
        return (done + len(waiting)) / (time.perf_counter() - start)

    run(0.2 * seconds)
    return len(batch) * run(seconds)


def picture(rng: np.random.Generator, side: int, mode: str) -> np.ndarray:
    """Smooth structure with grain, as X-rays have it."""
    coarse = rng.integers(0, 256, (side // 28 + 2, side // 28 + 2), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
    grain = rng.integers(-4, 5, (side, side), np.int16)
    grey = np.clip(smooth.astype(np.int16) + grain, 0, 255).astype(np.uint8)
    return grey if mode == "L" else np.stack([grey, np.roll(grey, 3), 255 - grey // 2], axis=-1)


def write_pictures(folder: Path, side: int, mode: str, count: int) -> None:
    """Different JPEG files in two class folders; few pictures, turned and shifted."""
    rng = np.random.default_rng(side)
    bases = [picture(rng, side, mode) for _ in range(12)]
    for name in "ab":
        (folder / name).mkdir(parents=True)

    def save(number: int) -> None:
        shift, level = number // 12 % 199, number // 12 // 199
        shifted = np.roll(bases[number % 12], (shift, 7 * shift), (0, 1)) // 2 + np.uint8(9 * level)
        file = folder / "ab"[number % 2] / f"p{number // 4:05}_{number}.jpg"
        Image.fromarray(shifted).save(file, quality=85)

    with ThreadPoolExecutor() as pool:
        list(pool.map(save, range(count)))


def write_study(
    work: Path, images: Path, backbone: str, *, store: str = "store", resize: str = "stretch"
) -> Path:
    """A study of one folder, with a store beside it and random weights where none are here."""
    weights = "imagenet" if backbone == LITE else random_weights(work, backbone)
    file = work / f"of-{store}.toml"
    file.write_text(
        f'name = "bench"\n[source]\npath = "{images}"\n[store]\npath = "{store}"\n'
        f'[backbone.{backbone}]\nweights = "{weights}"\nresize = "{resize}"\n'
    )
    return file


def random_weights(work: Path, backbone: str) -> Path:
    """Random, but with statistics that keep the pictures apart."""
    file = work / f"{backbone}.pth"
    if file.exists():
        return file
    import torch
    import torchvision

    torch.manual_seed(0)
    extra = {"init_weights": False} if backbone == "googlenet" else {}
    network = getattr(torchvision.models, backbone)(weights=None, **extra)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    with torch.no_grad():
        for _ in range(3):
            network.train()(torch.randn(4, 3, 96, 96))
    torch.save(network.state_dict(), file)
    return file


if __name__ == "__main__":
    main()
