"""Everything that needs a CUDA device, in one script of a few minutes.

    python -m tests.bench.cuda --out FOLDER                    on a machine with CUDA
    python -m tests.bench.cuda --out FOLDER --device cpu --scale 0.01     to try the script

Each section is a process of its own with a time limit, so one that fails or hangs costs itself
alone. What it prints, line by line, is in ``FOLDER/SECTION.txt``, its tables in ``FOLDER/cuda.md``.
Weights are random: neither a rate nor an agreement depends on them.
"""

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from cache.recipe import relative_l2
from pipeline.data.images import Transform
from pipeline.data.sources import read_image, scan
from pipeline.features.decoding import decode_batches, decode_images, empty_batch
from pipeline.features.engines import (
    EngineChoice,
    compute_features,
    load_cuda,
    run_batches,
    start_engine,
)
from pipeline.study import Domain
from tests.bench import heading, row
from tests.bench.features import (
    LOOP,
    engine_rate,
    picture,
    random_weights,
    write_pictures,
    write_study,
)

BACKBONES, PRECISIONS = ("densenet121", "googlenet"), ("fp32", "tf32", "bf16")
#: Side in pixels, colours and number of the generated pictures.
SETS = {"small": (224, "RGB", 16000), "large": (1600, "L", 6400), "colour": (1600, "RGB", 1920)}
#: The whole command; when the network got each batch, and how many images were in it.
TIMED = """
import json, sys, time
begun, times_to = float(sys.argv.pop(1)), sys.argv.pop(1)
import pipeline.cli
from pipeline.features import extract
batches, run_batches = [], extract.run_batches
def timed(decoded, engine):
    def submitted():
        for keys, pixels in decoded:
            batches.append([time.time() - begun, sum(key is not None for key in keys)])
            yield keys, pixels
    yield from run_batches(submitted(), engine)
extract.run_batches = timed
pipeline.cli.main(standalone_mode=False)
with open(times_to, "w") as file:
    json.dump(batches[1:], file)  # the canaries are first
"""
#: Stores that are committed often, so that a kill finds some of them.
SLOW_COMMIT = (
    "import sys, cache.store as s; s.ROWS_PER_COMMIT = 16;from pipeline.cli import main; main()"
)


def main() -> None:
    """Run the sections one after another, or one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("cuda-out"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the images")
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="sections after that are left out"
    )
    parser.add_argument("--only", default="", help="names of sections, separated by commas")
    parser.add_argument("--section", help="run this one here")
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    if options.section:
        SECTIONS[options.section][0](options)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="headrace-cuda-") as work:
        os.environ |= {"PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": "1"}
        begun = time.monotonic()
        for name, (_, limit) in SECTIONS.items():
            if options.only and name not in options.only.split(","):
                continue
            if time.monotonic() - begun > 60 * options.minutes:
                _write(options.out, f"\n## {name}: left out, no time\n")
                continue
            _run_section(name, limit, options, Path(work))


def _run_section(name: str, limit: int, options: argparse.Namespace, work: Path) -> None:
    start = time.monotonic()
    given = ["--section", name, "--work", str(work), "--device", options.device]
    command = [sys.executable, "-m", "tests.bench.cuda", *given, "--scale", str(options.scale)]
    file = options.out / f"{name}.txt"
    with file.open("w") as log:
        child = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            child.wait(limit if options.device == "cuda" else 8 * limit)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
    lines = file.read_text().splitlines(keepends=True)
    _write(options.out, f"\n## {name}\n")
    _write(options.out, "".join(line for line in lines if line.startswith(("| ", "- "))))
    if code := child.wait():
        _write(options.out, f"\nFAILED (exit code {code}):\n```\n{''.join(lines[-25:])}```\n")
    _write(options.out, f"\n({time.monotonic() - start:.1f} s)\n")


def _write(out: Path, text: str) -> None:
    print(text, end="", flush=True)
    with (out / "cuda.md").open("a") as file:
        file.write(text)


# The sections.


def environment(options: argparse.Namespace) -> None:
    """What the machine is."""
    import torch
    import torchvision

    name = torch.cuda.get_device_name() if options.device == "cuda" else "no GPU"
    print(f"- {name}, {os.cpu_count()} cores, Python {sys.version.split()[0]}")
    print(f"- torch {torch.__version__}, torchvision {torchvision.__version__}")
    print(f"- OpenVINO: {importlib.util.find_spec('openvino') is not None}")
    for backbone in BACKBONES:
        random_weights(options.work, backbone)


def correctness(options: argparse.Namespace) -> None:
    """The features of each precision on the device, against fp32 on the CPU."""
    import torch

    from pipeline.features.frozen import FeatureExtractor, build

    rng = np.random.default_rng(0)
    images = [(bytes([i]), picture(rng, 224, "RGB")) for i in range(24)]

    def rows(backbone: str, device: str, precision: str) -> np.ndarray:
        engine = _engine(options, backbone, precision, device=device, batch_size=8)
        computed = np.stack([row for _, row in compute_features(images, engine)])
        print(f"{engine.description}", flush=True)
        engine.close()
        return computed

    heading("backbone", "precision", "relative L2 against the CPU, median", "largest")
    for backbone in BACKBONES if options.device == "cuda" else BACKBONES[1:]:
        expected = rows(backbone, "cpu", "fp32")
        for precision in PRECISIONS:
            if precision == "tf32" and options.device == "cpu":
                continue
            distance = relative_l2(rows(backbone, options.device, precision), expected)
            row(backbone, precision, f"{np.median(distance):.1e}", f"{distance.max():.1e}")
            if precision == "fp32" and distance.max() > 1e-4:
                print("- WRONG: more than 1e-4")
    if options.device == "cuda":
        plain = build("densenet121", random_weights(options.work, "densenet121")).cuda()
        tensor = torch.from_numpy(np.stack([p for _, p in images])).cuda()
        with torch.inference_mode():
            features = FeatureExtractor(plain, Transform()).cuda()(tensor).cpu().numpy()
        expected = rows("densenet121", "cuda", "fp32")
        distance = relative_l2(features, expected).max()
        print(f"- engine against plain forward, both fp32 on the device: {distance:.1e}")


def stores(options: argparse.Namespace) -> None:
    """A store begun on the CPU is continued on the device; kill -9 and resume."""
    few, many = _images(options, "small", 64), _images(options, "small", 4000)
    study = write_study(options.work, few, "googlenet", store="begun")
    cpu = _features(study, "cpu", "fp32")
    study.write_text(study.read_text().replace(f'path = "{few}"', f'path = "{many}"'))
    resumed = _features(study, options.device, "fp32")
    print(
        f"- begun on the CPU ({cpu['computed']}), continued on the device: "
        f"{resumed['reused']} reused, {resumed['computed']} computed"
    )
    ways = ["--sample", "50", "--device", "cpu", "--engine", "torch"]
    checked = _cli("cache", "verify", str(study), *ways, check=False)
    verdict = checked.stdout.strip() or checked.stderr[-300:]
    print(f"- verified on the CPU: {verdict}".replace("\n", "; "))

    root = options.work / "begun"
    shutil.rmtree(root, ignore_errors=True)
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW_COMMIT, "features", str(study), "--device", options.device],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while child.poll() is None and not any(root.glob("*/parts/*")):
        time.sleep(0.02)
    child.kill()
    child.wait()
    done = _features(study, options.device, "fp32")
    whole = done["reused"] + done["computed"] == done["images_in"]
    print(
        f"- kill -9 after the first commit: {done['reused']} kept, {done['computed']} computed, "
        f"{'whole' if whole and done['reused'] else 'NOT AS IT SHOULD BE'}"
    )


def forward(options: argparse.Namespace) -> None:
    """The engine alone on random pixels."""
    heading("backbone", "precision", "images/s", "start, s")
    ways = [(backbone, precision) for backbone in BACKBONES for precision in PRECISIONS]
    if options.device == "cpu":
        ways = [("googlenet", "fp32")]
    else:
        load_cuda()
    for backbone, precision in ways:
        start = time.perf_counter()
        engine = _engine(options, backbone, precision)
        begun = time.perf_counter() - start
        batch = empty_batch((engine.batch_size, 224, 224, 3), options.device)
        batch[...] = np.random.default_rng(0).integers(0, 256, batch.shape, np.uint8)
        rate = engine_rate(engine, batch, seconds=1.5)
        row(backbone, precision, f"{rate:.0f}", f"{begun:.1f}")
        engine.close()
        del engine


def decoding(options: argparse.Namespace) -> None:
    """Reading, hashing and decoding alone, in batches as a GPU takes them."""
    cores = os.cpu_count()
    heading("pictures", "how", "images/s")
    for kind in SETS:
        items = _items(_images(options, kind))
        ways = [("stretch", cores), ("stretch", 0), ("fast", cores)]
        for resize, processes in ways[: 2 + (kind != "small")]:
            square = Transform(resize=resize)
            rate = _batches_rate(decode_batches(items, square, {}, size=256, processes=processes))
            how = f"{processes} processes" if processes else "threads"
            row(kind, f"{how}, {resize}", f"{rate:.0f}")
        try:
            from pipeline.features.device_decode import device_batches

            square = Transform(decode="gpu")
            rate = _batches_rate(device_batches(items, square, {}, size=256, device=options.device))
            row(kind, "on the device", f"{rate:.0f}")
        except Exception as error:  # noqa: BLE001 - the others are measured
            row(kind, "on the device", f"{type(error).__name__}: {error}")


def _batches_rate(batches) -> float:
    """From the first batch to the last full one: both have all work ahead before them."""
    ends = [time.perf_counter() for _ in batches]
    return 256 * (len(ends) - 2) / max(ends[-2] - ends[0], 1e-9) if len(ends) > 2 else 0.0


def device_pixels(options: argparse.Namespace) -> None:
    """How far pixels and features of the device's decoder are from the CPU's."""
    from pipeline.features.device_decode import device_batches

    name = BACKBONES[0 if options.device == "cuda" else 1]
    engine = _engine(options, name, "fp32", batch_size=32)
    heading("pictures", "mean grey levels", "largest", "features, relative L2, median", "largest")
    for kind in SETS:
        items = _items(_images(options, kind, 64))
        cpu = dict(decode_images(items, Transform(), {}))
        expected = dict(compute_features(cpu.items(), engine))
        transform = Transform(decode="gpu")
        batches = list(device_batches(items, transform, {}, size=32, device=options.device))
        computed = run_batches(batches, engine)
        rows = {k: of for part in computed for k, of in zip(*part, strict=True)}
        on_device = {k: of for part in batches for k, of in zip(*part, strict=False) if k}
        moved = np.stack([np.abs(on_device[k].cpu().numpy() - cpu[k].astype(int)) for k in cpu])
        far = relative_l2(*(np.stack([of[k] for k in cpu]) for of in (rows, expected)))
        grey = (f"{moved.mean():.3f}", moved.max())
        row(kind, *grey, f"{np.median(far):.1e}", f"{far.max():.1e}")
    engine.close()


def plain_loop(options: argparse.Namespace) -> None:
    """What a user would otherwise write, with all cores, in bf16."""
    heading("pictures", "backbone", "images", "images/s")
    ways = [("small", "densenet121", 2000), ("small", "googlenet", 2000)]
    for kind, backbone, number in [*ways, ("large", "densenet121", 600)]:
        images, count = _images(options, kind, number), _count(options, number)
        loop = _python("-c", LOOP, backbone, str(images), str(count), options.device, "bf16")
        row(kind, backbone, count, loop.stdout.split()[-1])


def whole(options: argparse.Namespace, kind: str, on_cuda: list[tuple]) -> None:
    """The whole command: backbone, precision, decoder and number of images of each run."""
    columns = ("pictures", "backbone", "precision", "decode", "images", "whole, s", "images/s")
    heading(*columns, "further images/s")
    ways = on_cuda if options.device == "cuda" else [("googlenet", "bf16", "cpu", 6400)]
    for backbone, precision, decode, number in ways:
        count = _count(options, number)
        images = _images(options, kind, number)
        store = f"{kind}-{backbone}-{precision}-{decode}"
        study = write_study(options.work, images, backbone, store=store)
        given = ["--device", options.device, "--precision", precision, "--decode", decode]
        times = options.work / "times.json"
        start = time.time()
        command = ("features", str(study), "--engine=torch", *given)
        notes = _python("-c", TIMED, str(start), str(times), *command).stderr
        seconds = time.time() - start
        marginal = _marginal(json.loads(times.read_text()))
        rates = (f"{seconds:.1f}", f"{count / seconds:.0f}", f"{marginal:.0f}")
        row(kind, backbone, precision, decode, count, *rates)
        for line in notes.splitlines():
            if "slowest:" in line or "torch on" in line:
                print(f"- {line.strip()}", flush=True)


def _marginal(batches: list[list[float]]) -> float:
    """Images a second over the second half of the batches, by when the network got each.

    The first few were decoded while it started, and the results of the last come together.
    """
    half = len(batches) // 2
    seconds = batches[-1][0] - batches[half][0]
    return sum(n for _, n in batches[half + 1 :]) / max(seconds, 1e-9)


def finetune(options: argparse.Namespace) -> None:
    """Fine-tuning beside a plain loop; see ``tests.bench.finetune``."""
    cuda = options.device == "cuda"
    small = ["--images", "16", "--steps", "1", "--epochs", "1", "--batch-size", "4", "--size", "64"]
    given = ["--device", options.device, *([] if cuda else [*small, "--backbone", "googlenet"])]
    for line in _python("-m", "tests.bench.finetune", *given, check=False).stdout.splitlines():
        print(f"- {line}", flush=True)


def tests(options: argparse.Namespace) -> None:
    """The tests of the rooms that use a device, with the device visible."""
    rooms = ["tests/features/test_decoding.py"]
    if options.device == "cuda":
        rooms = ["tests/finetune/test_loop.py", "tests/features"]
    given = ["-p", "no:cacheprovider", "-W", "ignore", "-rsfE", "--tb=short", "--show-capture=no"]
    if not importlib.util.find_spec("openvino"):
        given += ["-k", "not openvino and not network"]
    if options.device == "cuda" and importlib.util.find_spec("xdist"):
        given += ["-n", "6", "--dist", "loadfile"]
    done = _python("-m", "pytest", *rooms, *given, check=False)
    lines = done.stdout.splitlines()
    told = ("E  ", "tests/", "FAILED", "ERROR", "SKIP")
    shown = [line for line in lines if line.startswith(told)]
    for line in [*shown[-80:], *lines[-2:]]:
        print(f"- {line[:300]}")


SMALL = [
    ("densenet121", "bf16", "cpu", 16000),
    ("googlenet", "bf16", "cpu", 16000),
    ("densenet121", "fp32", "cpu", 16000),
]
LARGE = [("densenet121", "bf16", "gpu", 6400), ("densenet121", "bf16", "cpu", 6400)]
#: By name: what it runs, and its seconds at most on a GPU.
SECTIONS = {
    "environment": (environment, 70),
    "whole small": (lambda options: whole(options, "small", SMALL), 150),
    "plain loop": (plain_loop, 90),
    "forward": (forward, 90),
    "whole large": (lambda options: whole(options, "large", LARGE), 60),
    "decoding": (decoding, 60),
    "tests": (tests, 90),
    "stores": (stores, 70),
    "correctness": (correctness, 60),
    "finetune": (finetune, 90),
    "device pixels": (device_pixels, 30),
}


# What the sections share.


def _engine(options: argparse.Namespace, backbone: str, precision: str, **choice):
    """Torch with random weights, not compiled."""
    from pipeline.features.frozen import FeatureExtractor, build

    weights = random_weights(options.work, backbone)
    given = {"engine": "torch", "device": options.device, "compile": "never", **choice}
    return start_engine(
        lambda: FeatureExtractor(build(backbone, weights), Transform()),
        EngineChoice(**given),
        precision,
    )


def _count(options: argparse.Namespace, number: int) -> int:
    return max(32, int(number * options.scale)) // 4 * 4


def _images(options: argparse.Namespace, kind: str, count: int | None = None) -> Path:
    """A folder of generated pictures."""
    side, mode, most = SETS[kind]
    count = _count(options, count or most)
    folder = options.work / f"{kind}-{count}"
    if folder.exists():
        return folder
    start = time.perf_counter()
    write_pictures(folder, side, mode, count)
    size = sum(file.stat().st_size for file in folder.rglob("*.jpg")) / count
    seconds = time.perf_counter() - start
    print(f"- {kind}: {count} of {side} px, {mode}, {size / 1000:.0f} kB, {seconds:.1f} s")
    return folder


def _items(folder: Path) -> dict:
    """The images of a folder by key."""
    return {read_image(item).key: item for item in scan(Domain(path=folder)).items}


def _features(study: Path, device: str, precision: str) -> dict:
    ways = ["--device", device, "--engine", "torch", "--precision", precision, "--json"]
    return json.loads(_cli("features", str(study), *ways).stdout)["backbones"][0]


def _cli(*given: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    return _python("-m", "pipeline.cli", *given, check=check)


def _python(*given: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run([sys.executable, *given], capture_output=True, text=True, check=False)
    print(done.stderr[-6000:])
    if check and done.returncode:
        sys.exit(f"{given[-6:]} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done


if __name__ == "__main__":
    main()
