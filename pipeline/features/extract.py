"""Images to features with everything overlapped: read and decode, forward, hand over.

Threads decode ahead of the engine, within a window, so that memory does not grow
with the number of images. Batches are padded to one size: a ragged last batch would
round differently, and would make an engine compile twice.
"""

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from importlib import resources
from itertools import chain, islice
from os import cpu_count
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cache import disk
from cache.part import provenance_text
from cache.recipe import check_canaries
from cache.store import FeatureStore, Writer, compact, gc
from pipeline.data.images import PixelPolicy, decode
from pipeline.data.items import Item
from pipeline.data.sources import read
from pipeline.errors import EngineError, ImageError, WeightsError
from pipeline.features.engines import (
    Engine,
    EngineChoice,
    Features,
    Pixels,
    Wait,
    fallback_note,
    start_engine,
)
from pipeline.progress import Progress
from pipeline.words import counted, have

if TYPE_CHECKING:
    import torch

    from pipeline.features.frozen import Frozen
import json
import time
from dataclasses import asdict

from pipeline.data.samples import SampleOptions, Samples, Skip, load_samples
from pipeline.errors import NoImagesError, SkippedImagesError
from pipeline.features.backbones import policy_of, spec_of
from pipeline.features.engines import check_choice
from pipeline.features.load import FEATURES_REPORT, frozen_network, store_for
from pipeline.study import BackboneChoice, Study
from pipeline.words import are

if TYPE_CHECKING:
    from pipeline.features.frozen import Frozen

#: Decoded images that may wait: a few batches on a GPU, 40 MB at 224 x 224.
WINDOW = 256
#: From this many rows on, this share of them is suspicious.
_FEW, _SHARE_OF_FEW = 20, 0.5
_MANY, _SHARE_OF_MANY = 1000, 0.01

CHANGED = "changed while the run was under way; run again"
#: Reasons that need not hold at the next run.
TRANSIENT = frozenset({CHANGED})

Image = tuple[bytes, Pixels]
OnSkip = Callable[[bytes, str], None]


def decoded(items: dict[bytes, Item], policy: PixelPolicy, on_skip: OnSkip) -> Iterator[Image]:
    """Decode in threads, in order; an unusable image is reported and left out.

    Args:
        items: By content key; what is read must still have that key.
        policy: From bytes to pixels.
        on_skip: Called with key and reason.

    Yields:
        Key, and uint8 pixels of shape ``(size, size, 3)``.
    """
    waiting: deque[tuple[bytes, Future[Pixels]]] = deque()
    todo = iter(items.items())
    pool = ThreadPoolExecutor(cpu_count(), "decode")
    try:
        while True:
            for key, item in islice(todo, WINDOW - len(waiting)):
                waiting.append((key, pool.submit(_decode, key, item, policy)))
            if not waiting:
                return
            key, future = waiting.popleft()
            try:
                pixels = future.result()
            except ImageError as reason:
                on_skip(key, str(reason))
                continue
            yield key, pixels
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _decode(key: bytes, item: Item, policy: PixelPolicy) -> Pixels:
    content = read(item)
    if content.key != key:
        # The bytes that are hashed are the bytes that are decoded: no wrong row is possible.
        raise ImageError(CHANGED)
    return content.pixels(policy)


def features_of(images: Iterable[Image], engine: Engine) -> Iterator[tuple[bytes, Features]]:
    """Run the engine over images, several batches under way at once.

    Args:
        images: As :func:`decoded` yields them.
        engine: Ready to run.

    Yields:
        Key, and one float32 feature row.
    """
    under_way: deque[tuple[list[bytes], Wait]] = deque()
    for keys, pixels in _padded(images, engine.batch_size):
        under_way.append((keys, engine.submit(pixels)))
        if len(under_way) >= engine.depth:
            yield from _landed(*under_way.popleft())
    while under_way:
        yield from _landed(*under_way.popleft())


def _landed(keys: list[bytes], wait: Wait) -> Iterator[tuple[bytes, Features]]:
    try:
        features = wait()
    except RuntimeError as cause:
        text = str(cause).splitlines()[0]
        hint = "; try --batch-size with a smaller number" if "memory" in text.lower() else ""
        raise EngineError(f"the engine failed: {text}{hint}") from cause
    yield from zip(keys, features, strict=False)  # the padding has no key


def _padded(images: Iterable[Image], size: int) -> Iterator[tuple[list[bytes], Pixels]]:
    iterator = iter(images)
    while chunk := list(islice(iterator, size)):
        batch = np.zeros((size, *chunk[0][1].shape), np.uint8)
        for row, (_, pixels) in enumerate(chunk):
            batch[row] = pixels
        yield [key for key, _ in chunk], batch


class FeatureGuard:
    """Finds features that cannot be right before they reach the store.

    Args:
        copies: Whether many images may have the features of another.
    """

    def __init__(self, *, copies: bool = False) -> None:
        self._copies = copies
        self._seen: set[bytes] = set()
        self._rows = 0
        self._bad = 0
        #: Rows equal to an earlier image's: the same pixels in other bytes, or a dead network.
        self.same = 0

    def objection(self, row: NDArray[np.float32]) -> str | None:
        """Why a feature row must not be stored; None when it may.

        Raises:
            EngineError: Most rows so far, or more than 1 % of many, are bad or equal to
                that of another image: the network or its weights are broken.
        """
        self._rows += 1
        if not np.isfinite(row).all() or not row.any():
            self._bad += 1
            self._stop_if_many(self._bad, "give features that are not finite or all zero")
            return "non-finite or all-zero feature"
        digest = hashlib.blake2b(row.tobytes(), digest_size=12).digest()
        self.same += digest in self._seen
        self._seen.add(digest)
        if not self._copies:
            self._stop_if_many(self.same, "give the same features as another image")
        return None

    def _stop_if_many(self, count: int, what: str) -> None:
        """A few copies of one picture in a small set are no sign of a dead network."""
        allowed = _SHARE_OF_MANY if self._rows >= _MANY else _SHARE_OF_FEW
        if self._rows >= _FEW and count > allowed * self._rows:
            raise EngineError(
                f"{count} of {self._rows} images {what}: the backbone looks dead. "
                "Are these its weights?"
            )


# Fill a store with what a frozen network says of images that the store lacks.


_LOG = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Filling:
    """One network over one set of images.

    Attributes:
        store: Where the rows go.
        network: Builds what an engine runs; called only when there is work.
        policy: From bytes to the pixels that the network takes.
        engine: What the user asks for.
        title: Of the progress bar and the messages.
        copies: Whether many images may have the row of another: masked pictures often do,
            since many have four black corners.
        bad: Why images could not be used, by key; grows while :meth:`run` runs.
    """

    store: FeatureStore
    network: Callable[[], "Frozen"]
    policy: PixelPolicy
    engine: EngineChoice
    title: str
    copies: bool = False
    bad: dict[bytes, str] = field(default_factory=dict)
    _advance: Callable[[], None] = lambda: None

    def run(self, missing: Mapping[bytes, Item]) -> None:
        """Compute and commit the rows of images, by key.

        Raises:
            PipelineError: See the modules this calls; a full disk is a ``cache`` error.
        """
        self.store.prepare()
        gc(self.store)
        images = decoded(dict(missing), self.policy, self._skip)
        first = list(islice(images, 1))
        if first:  # no network is built for images that are all unusable
            with closing(self._start(len(missing))) as engine:
                self._rows(engine, chain(first, images), len(missing))
            compact(self.store)

    def _start(self, images: int) -> Engine:
        engine = start_engine(self.network(), self.engine, self.store.recipe.precision)
        _LOG.info("%s: %s", self.title, engine.description)
        if note := fallback_note(engine):
            _LOG.warning("%s", note)
        canaries = canary_features(engine, self.policy)
        provenance = engine.provenance()
        check_canaries(self.store.path, self.store.recipe, canaries, provenance=provenance)
        _warn_if_full(self.store, images * canaries[0].nbytes)
        return engine

    def _rows(self, engine: Engine, images: Iterator[Image], total: int) -> None:
        guard = FeatureGuard(copies=self.copies)
        provenance = provenance_text(engine.provenance())
        with (
            Progress(self.title, total) as progress,
            Writer(self.store, provenance=provenance) as writer,
        ):
            self._advance = progress.advance
            for key, row in features_of(images, engine):
                objection = guard.objection(row)
                if objection:
                    self.bad[key] = objection
                else:
                    writer.add(key, row)
                progress.advance()
        if guard.same and not self.copies:
            _LOG.warning(
                "%s: %s %s the features of another image: the same pixels in other bytes",
                *(self.title, counted(guard.same, "image"), have(guard.same)),
            )

    def _skip(self, key: bytes, reason: str) -> None:
        self.bad[key] = reason
        self._advance()


def canary_features(engine: Engine, policy: PixelPolicy) -> Features:
    """Features of the four images shipped with the package, shape ``(4, ...)``."""
    folder = resources.files("pipeline.features") / "canaries"
    files = sorted((f for f in folder.iterdir() if f.name[0] != "."), key=lambda f: f.name)
    images = [(f.name.encode(), decode(f.read_bytes(), policy)) for f in files]
    return np.stack([row for _, row in features_of(images, engine)])


def check_weights(network: "torch.nn.Module", store: FeatureStore) -> None:
    """Refuse a network that is not the one of the store's recipe.

    Raises:
        WeightsError: The weights file changed, or its remembered digest is damaged.
    """
    from pipeline.features.frozen import state_digest

    if state_digest(network) != store.recipe.weights:
        raise WeightsError(
            f"the weights of {store.recipe.backbone} changed while the run was under way, or "
            "their remembered digest is damaged: delete index/weights.json beside the "
            "stores and run again"
        )


def _warn_if_full(store: FeatureStore, size: int) -> None:
    needed = int(size * 1.1)
    free = disk.free_bytes(store.path)
    if free is not None and free < needed:
        _LOG.warning(
            "%s: about %d MB are needed and %d MB are free; what fits will be kept",
            store.path,
            needed >> 20,
            free >> 20,
        )


# Stage 1: run the frozen backbones once over what their stores do not hold yet.


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """How stage 1 runs.

    Attributes:
        engine: See :class:`pipeline.features.engines.EngineChoice`.
        samples: See :class:`pipeline.data.samples.SampleOptions`.
        strict: Whether a skipped image is an error once all good ones are safe.
        report: Name of the report below the study's results.
    """

    engine: EngineChoice = field(default_factory=EngineChoice)
    samples: SampleOptions = field(default_factory=SampleOptions)
    strict: bool = False
    report: str = FEATURES_REPORT


@dataclass(frozen=True, kw_only=True)
class BackboneReport:
    """What one run did for one backbone; ``images_in = computed + reused + skipped``."""

    backbone: str
    fingerprint: str
    store: str
    dim: int
    images_in: int
    computed: int
    reused: int
    skipped: int
    seconds: float
    images_per_second: float


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """What one run did: a row for each backbone, and every skipped image."""

    study: str
    backbones: tuple[BackboneReport, ...]
    skipped: tuple[Skip, ...]


def extract(study: Study, options: ExtractOptions | None = None) -> ExtractReport:
    """Fill the stores of a study; what they hold already is not computed again.

    Returns:
        The report, which is also written to ``results/<study>/features.json``.

    Raises:
        PipelineError: See the modules this calls; a full disk is a ``cache`` error.
        SkippedImagesError: ``options.strict`` and an image was skipped.
    """
    options = options or ExtractOptions()
    check_choice(options.engine)
    with Progress("reading files") as progress:
        samples, unreadable = load_samples(study, options.samples, progress)
    _say_duplicates(samples)
    disk.probe(study.results)
    # Weights that cannot be had must show before the first backbone has run for an hour.
    stores = [store_for(study, choice) for choice in study.backbones]
    runs = [
        _Run(choice, store, samples, options)
        for choice, store in zip(study.backbones, stores, strict=True)
    ]
    reports = tuple(run.go(len(unreadable)) for run in runs)
    skipped = (*unreadable, *dict.fromkeys(skip for run in runs for skip in run.skipped))
    report = ExtractReport(study=study.name, backbones=reports, skipped=skipped)
    _write(study, report, options.report)
    _check_nothing_is_empty(samples, skipped)
    if options.strict and skipped:
        first = f"{skipped[0].domain}/{skipped[0].path}: {skipped[0].reason}"
        raise SkippedImagesError(
            f"{counted(len(skipped), 'image')} {'was' if len(skipped) == 1 else 'were'} skipped "
            f"and --strict is set; first: {first}. The features of all others are stored"
        )
    return report


class _Run:
    """One backbone of one run."""

    def __init__(
        self,
        choice: BackboneChoice,
        store: FeatureStore,
        samples: Samples,
        options: ExtractOptions,
    ) -> None:
        self._choice = choice
        self._store = store
        self._samples = samples
        self._options = options
        self._bad: dict[bytes, str] = {}

    def go(self, unreadable: int) -> BackboneReport:
        """Compute what is missing and count what happened."""
        start = time.monotonic()
        before = self._store.keys()
        pairs = zip(self._samples.key, self._samples.items, strict=True)
        missing = {key: item for key, item in pairs if key not in before}
        if missing:
            self._fill(missing)
        reused = sum(key in before for key in self._samples.key)
        return self._report(unreadable, reused, time.monotonic() - start)

    @property
    def skipped(self) -> list[Skip]:
        """Samples whose image proved unusable in this run."""
        table = self._samples
        return [
            Skip(
                domain=str(table.domain[i]),
                path=table.items[i].path,
                reason=self._bad[key],
                key="" if self._bad[key] in TRANSIENT else key.hex(),
            )
            for i, key in enumerate(table.key)
            if key in self._bad
        ]

    @property
    def _title(self) -> str:
        masked = self._choice.mask != "none"
        return f"{self._choice.name}, {self._choice.mask}" if masked else self._choice.name

    def _report(self, unreadable: int, reused: int, seconds: float) -> BackboneReport:
        bad = len(self.skipped)
        computed = len(self._samples) - reused - bad
        return BackboneReport(
            backbone=self._choice.name,
            fingerprint=self._store.recipe.fingerprint,
            store=str(self._store.path),
            dim=spec_of(self._choice.name).dim,
            images_in=len(self._samples) + unreadable,
            computed=computed,
            reused=reused,
            skipped=bad + unreadable,
            seconds=round(seconds, 3),
            images_per_second=round(computed / seconds, 1) if computed else 0.0,
        )

    def _fill(self, missing: Mapping[bytes, Item]) -> None:
        Filling(
            store=self._store,
            network=self._network,
            policy=policy_of(self._choice.name, self._choice.resize, self._choice.mask),
            engine=self._options.engine,
            title=self._title,
            bad=self._bad,
            copies=self._choice.mask != "none",
        ).run(missing)

    def _network(self) -> "Frozen":
        network = frozen_network(self._choice)
        check_weights(network.network, self._store)
        return network


def _check_nothing_is_empty(samples: Samples, skipped: tuple[Skip, ...]) -> None:
    lost = {(skip.domain, skip.path) for skip in skipped}
    for domain in dict.fromkeys(samples.domain.tolist()):
        rows = np.flatnonzero(samples.domain == domain)
        if all((domain, samples.items[i].path) in lost for i in rows):
            first = next(skip for skip in skipped if skip.domain == domain)
            raise NoImagesError(
                f"{domain}: none of its images can be used; first: {first.path}: {first.reason}"
            )


def _say_duplicates(samples: Samples) -> None:
    copies = len(samples) - len(set(samples.key))
    if copies:
        _LOG.info(
            "%s byte-identical to another; each shares its feature row",
            f"{counted(copies, 'image')} {are(copies)}",
        )


def _write(study: Study, report: ExtractReport, name: str) -> None:
    disk.make_dir(study.results)
    text = json.dumps(asdict(report), indent=1)
    disk.publish(study.results / name, text.encode())
