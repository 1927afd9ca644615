"""Stage 1 on many machines: the same decoding, engines and writer as workers of Ray Data.

The parts of a store are immutable and named by their content. So workers can write at the same
time into a folder that all machines share, and a block that runs twice, because its worker or
machine died, is harmless. Folders are listed and files are hashed in the same way.
"""

import importlib.util
import logging
import os
import pickle
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from cache.errors import CacheError
from cache.maintenance import compact, gc
from cache.recipe import Recipe
from cache.store import ROWS_PER_COMMIT, FeatureStore
from pipeline.data.items import Item
from pipeline.data.samples import ALL_IMAGES, load_samples
from pipeline.errors import EngineError, PipelineError
from pipeline.features.backbones import transform_of
from pipeline.features.engines import EngineChoice, run_batches
from pipeline.features.extract import StoreFiller, extract_loaded
from pipeline.features.load import frozen_network
from pipeline.parallel import map_block
from pipeline.progress import Progress
from pipeline.study import BackboneChoice, Study
from pipeline.words import counted, first_line

_LOG = logging.getLogger(__name__)
#: Limits of a block, the unit of work that is repeated when a worker dies.
_BYTES_PER_BLOCK = 512 << 20
_BLOCKS_PER_WORKER = 4
#: With more cores a worker needs more than 2 GB: OpenVINO runs a batch on each core.
_CORES_PER_WORKER = 4
#: Decoding was measured to take up to 25 times the bytes of a file, so few are open at once.
_OPEN_BYTES = 24 << 20
#: Ray repeats a block when its process dies; an image that kills it must not do so for ever.
_MOST_TRIES = 4
_SECONDS_TO_ANSWER = 10
#: Ray sends no usage statistics, and prints only errors.
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
_Block = Sequence[Any]
_Work = Callable[[_Block], Any]
_T = TypeVar("_T")
_R = TypeVar("_R")


def extract(
    study: Study,
    engine: EngineChoice | None = None,
    *,
    address: str = "",
    rehash: bool = False,
    strict: bool = False,
) -> dict[str, Any]:
    """As :func:`pipeline.features.extract.extract`, on a cluster.

    Args:
        study: See there, also ``engine``, ``rehash`` and ``strict``.
        engine: What the networks run on.
        address: As for ``ray.init``; empty: the cluster in ``RAY_ADDRESS``, one that runs on
            this machine, or else a new one of this machine alone.
        rehash: Read every file again.
        strict: Whether a skipped image is an error.

    Raises:
        EngineError: Ray is not installed, or no cluster answers.
    """
    with _cluster(address):
        loaded = load_samples(study, replace(ALL_IMAGES, rehash=rehash), in_tasks)
        fill = partial(fill_stores, engine=engine or EngineChoice())
        return extract_loaded(study, *loaded, fill, strict=strict)


@contextmanager
def _cluster(address: str) -> Iterator[None]:
    """Connect to a cluster for the time of a ``with`` statement.

    If this process has started Ray before, that cluster is used and left running.
    """
    if importlib.util.find_spec("ray") is None:
        raise EngineError('Ray is not installed: pip install "headrace[ray]"')
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdecimal():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=_SECONDS_TO_ANSWER).close()
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        import ray

        starts = not ray.is_initialized()
        if starts:
            ray.init(address or None, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, OverflowError, ValueError, RuntimeError) as cause:
        raise EngineError(
            f"no cluster of Ray at {address or 'this machine'}: {first_line(cause)}. Start one "
            "with: ray start --head, or leave the address out"
        ) from cause
    try:
        yield
    finally:
        if starts:
            ray.shutdown()


class _Share(NamedTuple):
    """How many workers fit into the cluster, and the resources of each."""

    workers: int
    cores: int
    gpus: int = 0


def in_tasks(function: Callable[[_T], _R], values: Sequence[_T]) -> Iterator[_R]:
    """See :class:`pipeline.parallel.Mapper`: in tasks of one core each, in blocks of values."""
    share = _Share(sum(int(node["CPU"]) for node in _nodes()), 1)
    blocks = _blocks(values, share.workers)
    for answer in _answers(blocks, share, partial(map_block, function)):
        yield from answer


def fill_stores(
    stores: Mapping[BackboneChoice, FeatureStore],
    missing: Mapping[bytes, Item],
    *,
    engine: EngineChoice,
    title: str,
) -> dict[bytes, str]:
    """As :func:`pipeline.features.extract.fill_stores`, on all machines.

    Args:
        stores: Stores by layer of one network.
        missing: Images by content key.
        engine: The user's choice of an engine.
        title: Title of the progress bar and the messages.

    Raises:
        PipelineError: A worker failed (the message names its machine); or written rows are
            missing in the store, because its folder is not the same everywhere.
    """
    for store in stores.values():
        store.prepare()
        gc(store)
    share = _share(engine)
    whole_paths = {  # a worker has a current folder of its own
        choice: replace(choice, weights=str(Path(choice.weights).resolve()))
        for choice in stores
        if choice.weights != "imagenet"
    }
    start = partial(
        _start_writing,
        store.path.parent.resolve(),
        [store.recipe for store in stores.values()],
        [whole_paths.get(choice, choice) for choice in stores],
        replace(engine, threads=share.cores),
    )
    blocks = _blocks(list(missing.items()), share.workers)
    unusable: dict[bytes, str] = {}
    engines = set[str]()
    with Progress(title, len(missing)) as progress:
        for images, reasons, engine_name in _answers(blocks, share, start, starts=True):
            unusable |= reasons
            progress.advance(images)
            if engine_name not in engines:
                _LOG.info("%s: %s, %s", title, counted(share.workers, "worker"), engine_name)
            engines.add(engine_name)
    for store in stores.values():
        compact(store)
        if lost := sum(key not in store and key not in unusable for key in missing):
            raise EngineError(
                f"{store.path}: the features of {counted(lost, 'image')} were written on "
                "another machine and are not here. Every machine must see the same folder "
                "under this path"
            )
    return unusable


# The plan: how large blocks and workers are.


def _nodes() -> list[Mapping[str, float]]:
    """Resources of the machines that are up and compute."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU") for node in nodes):
        raise EngineError("the cluster of Ray has no machine with a CPU to offer")
    return [node for node in nodes if node.get("CPU")]


def _share(engine: EngineChoice) -> _Share:
    """One worker per GPU; without a GPU, or if none is wanted, one for every four cores."""
    nodes = _nodes()
    gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
    if engine.device == "cuda" and not gpus:
        raise EngineError("no machine of the cluster has a CUDA device: use --device cpu")
    if gpus and engine.device != "cpu" and engine.engine != "openvino":
        cores = max(1, min(int(node["CPU"] // node["GPU"]) for node in gpus))
        return _Share(sum(int(node["GPU"]) for node in gpus), cores, 1)
    cores = min(_CORES_PER_WORKER, *(int(node["CPU"]) for node in nodes))
    return _Share(sum(int(node["CPU"]) // cores for node in nodes), cores)


def _blocks(values: Sequence[_T], workers: int) -> list[Sequence[_T]]:
    """Divide values into blocks that are small enough, and enough for all workers."""
    rows_in = Counter(item.file for item in map(_item_of, values) if item)
    most = min(ROWS_PER_COMMIT, -(-len(values) // (workers * _BLOCKS_PER_WORKER)))
    blocks, start, size = [], 0, 0.0
    for end, value in enumerate(values):
        item = _item_of(value)
        # A row of a stack is read alone; a folder may hold anything.
        weight = item.stat.size / rows_in[item.file] if item else _BYTES_PER_BLOCK
        if end > start and (end - start == most or size + weight > _BYTES_PER_BLOCK):
            blocks.append(values[start:end])
            start, size = end, 0.0
        size += weight
    return [*blocks, values[start:]] if values else []


def _item_of(value: Any) -> Item | None:
    """The image of a value, which is an item, or a key with its item."""
    last = value[-1] if isinstance(value, tuple) else value
    return last if isinstance(last, Item) else None


# The run: blocks go out as bytes, answers come back as bytes, in order.


def _answers(
    blocks: Sequence[_Block], share: _Share, work: Callable[..., Any], *, starts: bool = False
) -> Iterator[Any]:
    """The answers of the workers to each block, in order.

    Args:
        blocks: Units of work; a block whose worker dies is repeated.
        share: Resources of one worker.
        work: The function that is applied to a block.
        starts: Whether ``work`` only makes that function, once per worker, because that takes
            long.

    Raises:
        EngineError: A worker raised one of our errors, whose exit code is kept; or Ray gave up.
    """
    if not blocks:
        return
    import ray
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    # Ray's own limit of tries is used up while it finds out that a machine has died.
    tries = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Tries).remote()
    rows = [{"number": number, "block": pickle.dumps(b)} for number, b in enumerate(blocks)]
    workers = min(share.workers, len(blocks))

    def begin(number: int) -> int:
        return int(ray.get(tries.begin.remote(number)))

    function: Any = partial(_answer, begin, work)
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Worker if starts else function,
        fn_constructor_args=(begin, work) if starts else None,
        compute=ActorPoolStrategy(size=workers) if starts else TaskPoolStrategy(size=workers),
        batch_size=1,
        num_cpus=share.cores,
        num_gpus=share.gpus or None,
    )
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    dataset.context.execution_options.preserve_order = True
    try:
        for row in dataset.iter_rows():
            answer = pickle.loads(row["answer"])  # noqa: S301 - our own worker
            if isinstance(answer, EngineError):
                raise answer
            yield answer
    except ray.exceptions.RayError as cause:
        raise EngineError(
            f"Ray gave up: {first_line(cause)}. What was stored is safe; run again"
        ) from cause


class _Tries:
    """Counts, for the whole cluster, how often each block was begun."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        self._begun[number] += 1
        return self._begun[number]


def _answer(begin: Callable[[int], int], work: _Work, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Do the work of a batch of Ray Data, which is one block; ``begin`` counts its tries."""
    block = pickle.loads(batch["block"][0])  # noqa: S301 - our own driver
    item = _item_of(block[0])
    try:
        if begin(int(batch["number"][0])) > _MOST_TRIES:
            raise EngineError(
                f"the process that worked on {counted(len(block), 'image')} from "
                f"{item.file if item else block[0]} on has died {_MOST_TRIES} times. Is there "
                "enough memory? Without --ray the image shows that ends it"
            )
        if item:
            _check_seen(Path(item.file).parent, "images")
        answer = work(block)
    except (PipelineError, CacheError) as error:
        answer = EngineError(f"{socket.gethostname()}: {error}")  # not each can be pickled
        answer.exit_code = error.exit_code
    return {"answer": [pickle.dumps(answer)]}


def _check_seen(folder: Path, what: str) -> None:
    """Check that this machine sees the images, so that it does not call them unreadable."""
    if not folder.is_dir():
        raise EngineError(
            f"this machine does not see {folder}: the {what} must lie in a folder that all "
            "machines of the cluster share, under the same path"
        )


# What a worker does: start the network once, then write the rows of block after block.


class _Worker:
    """Handles block after block with what was started for the first one."""

    def __init__(self, begin: Callable[[int], int], start: Callable[[], _Work]) -> None:
        self._begin, self._start = begin, start
        self._work: _Work | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return _answer(self._begin, self._handle_block, batch)

    def _handle_block(self, block: _Block) -> Any:
        self._work = self._work or self._start()
        return self._work(block)


def _start_writing(
    root: Path, recipes: Sequence[Recipe], choices: Sequence[BackboneChoice], engine: EngineChoice
) -> _Work:
    """Start one network; returns a function that writes the rows of a block, for each layer."""

    def stores() -> list[FeatureStore]:
        # The driver knows that these rows are missing: no part need be read.
        return [FeatureStore(root, recipe).assume_empty() for recipe in recipes]

    for store in stores():
        _check_seen(store.path / "parts", "stores")
        gc(store)  # of a worker that was killed on this machine
    layers = [choice.layer for choice in choices]
    build = partial(frozen_network, choices[0], recipes[0], layers=layers)
    filler = StoreFiller(stores(), build, transform_of(choices[0]), engine, images=ROWS_PER_COMMIT)
    started = filler.start()

    def write(block: Sequence[tuple[bytes, Item]]) -> tuple[int, dict[bytes, str], str]:
        """Number of images, reasons why some could not be used, and the engine."""
        unusable: dict[bytes, str] = {}
        # Of a stack one row is read at a time, which is small.
        largest = max((item.stat.size for _, item in block if item.row is None), default=1)
        threads = max(1, min(engine.threads or 1, _OPEN_BYTES // max(largest, 1)))
        filler.stores = stores()
        images = filler.decode(dict(block), unusable, threads=threads)
        filler.write(run_batches(images, started), unusable)
        return len(block), unusable, started.description

    return write
