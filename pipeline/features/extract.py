"""Stage 1: run the frozen backbones once over the images that their stores do not hold yet.

The steps overlap: images are decoded ahead of the engine, within a window, and several batches run
in it while finished rows are written. Batches are padded to one size: a smaller last batch would
round differently, and would make an engine compile twice.
"""

import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import numpy as np

from cache import disk
from cache.maintenance import compact, gc
from cache.recipe import canonical, check_canaries
from cache.store import FeatureStore, Writer
from pipeline.data.images import Transform
from pipeline.data.items import Item
from pipeline.data.samples import ALL_IMAGES, Samples, SkippedImage, load_samples
from pipeline.data.sources import CHANGED, warn_of_unnamed_findings
from pipeline.errors import (
    EngineError,
    NoImagesError,
    PartialFailureError,
    SkippedImagesError,
    record_failure,
)
from pipeline.features.backbones import spec_of, transform_of
from pipeline.features.decoding import Batch, decode_batches
from pipeline.features.engines import (
    Build,
    Engine,
    EngineChoice,
    Features,
    canary_features,
    check_engine,
    engine_errors,
    load_early,
    resolve_engine,
    run_batches,
    start_engine,
)
from pipeline.features.guard import FeatureGuard, refuse_many_constant
from pipeline.features.load import FEATURES_REPORT, frozen_network, store_for
from pipeline.parallel import Mapper, Processes, can_share_memory, in_threads
from pipeline.progress import Progress
from pipeline.results import write_set
from pipeline.study import SOURCE, BackboneChoice, Study
from pipeline.words import are, counted

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")


def extract(
    study: Study,
    engine: EngineChoice | None = None,
    *,
    rehash: bool = False,
    strict: bool = False,
    report: str = FEATURES_REPORT,
) -> dict[str, Any]:
    """Fill the stores of a study; features that they hold already are not computed again.

    :func:`pipeline.features.ray_extract.extract` does the same on many machines.

    Args:
        study: The study with images and stores.
        engine: What the networks run on; None: chosen for this machine.
        rehash: Read every file again instead of using the index.
        strict: Whether a skipped image is an error, once all others are stored.
        report: Name of the report below the study's results.

    Returns:
        The report, which is also written: a row for each backbone, whose ``images_in`` is the sum
        of ``computed``, ``reused`` and ``skipped``; every skipped image; failures with reasons.

    Raises:
        PartialFailureError: Some backbones or targets failed; the others were run.
        PipelineError: See the modules this calls; a full disk is a ``cache`` error.
        SkippedImagesError: ``strict``, and an image was skipped.
    """
    engine = engine or EngineChoice()
    check_engine(engine)
    with ExitStack() as reading:
        mapper: Mapper = in_threads
        # A store that exists may already hold everything.
        is_new = not study.store_root.is_dir()
        if is_new and load_early(engine) and can_share_memory():
            mapper = reading.enter_context(Processes(os.cpu_count() or 1)).map
        loaded = load_samples(study, replace(ALL_IMAGES, rehash=rehash), mapper)
    fill = partial(_fill_locally, engine=engine)
    return extract_loaded(study, *loaded, fill, strict=strict, report=report)


def extract_loaded(
    study: Study,
    samples: Samples,
    unreadable: Sequence[SkippedImage],
    fill: Callable[..., dict[bytes, str]],
    *,
    strict: bool = False,
    report: str = FEATURES_REPORT,
) -> dict[str, Any]:
    """:func:`extract` for loaded samples.

    ``fill`` computes and stores what is missing: from stores by layer of one network, images by
    content key, and a title, to the reasons why images could not be used, by key.
    """
    warn_of_unnamed_findings(study)
    if copies := len(samples) - len(set(samples.key)):
        images = f"{counted(copies, 'image')} {are(copies)}"
        _LOG.info(
            "%s byte-identical to another image; equal images share one row of features", images
        )
    disk.prepare(study.results)
    alone = len(study.backbones) == 1
    networks = defaultdict[BackboneChoice, dict[BackboneChoice, FeatureStore]](dict)
    failed: dict[str, Exception] = {}
    for choice in study.backbones:
        # Missing weights must be reported before the first backbone has run for an hour.
        with record_failure(_part(choice), failed, alone=alone):
            store = store_for(study.store_root, choice)
            networks[replace(choice, name=choice.network.name)][choice] = store
    backbones, skipped = [], list(unreadable)
    for choice, stores in networks.items():
        with record_failure(_part(choice), failed, alone=alone):
            rows, unusable = _extract_network(stores, samples, len(unreadable), fill)
            backbones += rows
            skipped += unusable
    if failed and not backbones:
        raise next(iter(failed.values()))
    of_domains = {**samples.failures, **_emptied(samples, skipped)}
    failures = {d if d == SOURCE else f"target.{d}": why for d, why in of_domains.items()} | failed
    record: dict[str, Any] = {
        "schema": 1,
        "study": study.name,
        "backbones": backbones,
        "skipped": [asdict(skip) for skip in dict.fromkeys(skipped)],
        "failures": {part: str(failure) for part, failure in failures.items()},
    }
    write_set(study.results / report, record)
    if SOURCE in failures:
        raise failures[SOURCE]
    if strict and record["skipped"]:
        first, count = record["skipped"][0], len(record["skipped"])
        raise SkippedImagesError(
            f"{counted(count, 'image')} {'was' if count == 1 else 'were'} skipped and --strict is "
            f"set; first: {first['domain']}/{first['path']}: {first['reason']}. The features of "
            "all others are stored"
        )
    if failures:
        raise PartialFailureError(failures, record)
    return record


def _part(choice: BackboneChoice) -> str:
    """A backbone as the study file calls it, because a target may have the same name."""
    return f"backbone.{choice.name}"


def _extract_network(
    stores: Mapping[BackboneChoice, FeatureStore],
    samples: Samples,
    unreadable: int,
    fill: Callable[..., dict[bytes, str]],
) -> tuple[list[dict[str, Any]], list[SkippedImage]]:
    """Compute missing features of the layers of one network; returns the counts."""
    start = time.monotonic()
    before = {choice: store.keys() for choice, store in stores.items()}
    in_all = set.intersection(*before.values())
    pairs = zip(samples.key, samples.items, strict=True)
    missing = {key: item for key, item in pairs if key not in in_all}
    masks = {choice.mask for choice in stores} - {"none"}
    title = ", ".join([*(choice.name for choice in stores), *masks])
    unusable = fill(stores, missing, title=title) if missing else {}
    refuse_many_constant(title, missing, unusable, images=len(set(samples.key)))
    skipped, seconds = _skips(samples, unusable), time.monotonic() - start
    rows = []
    for choice, store in stores.items():
        reused = sum(key in before[choice] for key in samples.key)
        computed = len(samples) - reused - len(skipped)
        rows.append(
            {
                "backbone": choice.name,
                "fingerprint": store.recipe.fingerprint,
                "store": str(store.path),
                "dim": spec_of(choice.name).dim,
                "images_in": len(samples) + unreadable,
                "computed": computed,
                "reused": reused,
                "skipped": len(skipped) + unreadable,
                "seconds": round(seconds, 3),
                "images_per_second": round(computed / seconds, 1) if computed else 0.0,
            }
        )
    return rows, skipped


def _fill_locally(
    stores: Mapping[BackboneChoice, FeatureStore],
    missing: Mapping[bytes, Item],
    *,
    engine: EngineChoice,
    title: str,
) -> dict[bytes, str]:
    """:func:`fill_stores` for the layers of one network, in this process."""
    choice, layers = next(iter(stores)), [choice.layer for choice in stores]
    return fill_stores(
        list(stores.values()),
        missing,
        build=lambda: frozen_network(choice, stores[choice].recipe, layers=layers),
        transform=transform_of(choice),
        engine=engine,
        title=title,
    )


def fill_stores(
    stores: Sequence[FeatureStore],
    missing: Mapping[bytes, Item],
    *,
    build: Build,
    transform: Transform,
    engine: EngineChoice,
    title: str,
) -> dict[bytes, str]:
    """Compute and commit missing rows for all stores of one network, in one pass.

    Args:
        stores: One store for each layer, in the order of the network's features.
        missing: Images by content key.
        build: Builds the network; called only if an engine needs it.
        transform: From bytes to the network's pixels.
        engine: The user's choice of an engine.
        title: Title of the progress bar and the messages.

    Returns:
        The reasons why images could not be used, by key.

    Raises:
        PipelineError: See the modules this calls; a full disk is a ``cache`` error.
    """
    for store in stores:
        store.prepare()
        gc(store)
    begun = time.monotonic()
    filler = StoreFiller(stores, build, transform, engine, images=len(missing))
    unusable: dict[bytes, str] = {}
    batches = filler.decode(missing, unusable)
    with ThreadPoolExecutor(1, "first batch") as meanwhile:
        decoding = meanwhile.submit(_first_usable, batches)
        # A GPU takes seconds to start; on a CPU no network is built if no image is usable.
        if filler.choice.device == "cpu" and not decoding.result():
            return unusable
        started = filler.start()
    with closing(started):
        if not (first := decoding.result()):
            return unusable
        _LOG.info("%s: %s", title, started.description)
        waited = defaultdict[str, float](float, starting=time.monotonic() - begun)
        computed = run_batches(_timed(chain(first, batches), waited, "decoding"), started)
        with Progress(title, len(missing)) as progress:
            filler.write(_timed(computed, waited, "network"), unusable, progress.advance)
        waited["network"] -= waited["decoding"]  # the one asks for the other
        _log_limit(title, time.monotonic() - begun, waited, started.device_seconds)
    for store in stores:
        compact(store)
    return unusable


class StoreFiller:
    """Fills the stores of one network: engine, decoding and writing.

    Attributes:
        stores: See :func:`fill_stores`.
        choice: The user's choice of an engine, resolved for this machine.
    """

    def __init__(
        self,
        stores: Sequence[FeatureStore],
        build: Build,
        transform: Transform,
        engine: EngineChoice,
        *,
        images: int,
    ) -> None:
        self.stores, self._build, self._transform, self._images = stores, build, transform, images
        recipe = self._recipe = stores[0].recipe
        self.choice = resolve_engine(
            engine, recipe.precision, images=images, size=transform.size, views=transform.views
        )
        self._guard = FeatureGuard(transform)
        # Where the features of the second and every later store begin.
        dims = [spec_of(store.recipe.backbone).dim for store in stores]
        self._edges = np.cumsum(dims)[:-1].tolist()

    def start(self) -> Engine:
        """Start the engine and compare its features with the canaries of the stores.

        Raises:
            CanaryError: The stores were filled by another network.
        """
        stores, recipe = self.stores, self._recipe
        cuts = ", ".join(store.recipe.cut for store in stores)
        name = f"{replace(recipe, cut=cuts).fingerprint[:16]}.openvino"
        converted_file = stores[0].path.parent / "index" / "networks" / name
        with engine_errors():
            started = start_engine(
                self._build,
                self.choice,
                recipe.precision,
                converted_file=converted_file,
                images=self._images,
            )
        self._provenance = started.provenance()
        try:
            with engine_errors():
                canaries = np.split(canary_features(started, self._transform), self._edges, axis=-1)
            for store, rows in zip(stores, canaries, strict=True):
                check_canaries(store.path, store.recipe, rows, provenance=self._provenance)
                _warn_if_full(store, self._images * rows[0].nbytes)
        except BaseException:
            started.close()
            raise
        return started

    def decode(
        self, items: Mapping[bytes, Item], unusable: dict[bytes, str], *, threads: int | None = None
    ) -> Iterator[Batch]:
        """Batches of images for the engine, decoded on the transform's device."""
        transform, device, size = self._transform, self.choice.device, self.choice.batch_size or 1
        if transform.decode == "cpu":
            threads = threads or self.choice.threads
            return decode_batches(
                items, transform, unusable, size=size, device=device, threads=threads
            )
        if device != "cuda":
            raise EngineError(
                f"decode = gpu needs a CUDA device, and the network runs on {device}: "
                "use --decode cpu, which has a store of its own"
            )
        from pipeline.features.device_decode import device_batches

        return device_batches(items, transform, unusable, size=size, device=device)

    def write(
        self,
        batches: Iterable[tuple[list[bytes], Features]],
        unusable: dict[bytes, str],
        advance: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Write rows as they come, divided among the stores; invalid rows are left out.

        Args:
            batches: See :func:`run_batches`.
            unusable: Gets the reason of each image with an invalid row, by key.
            advance: Gets the number of further images that are done.
        """
        provenance = canonical(self._provenance)
        written = done = 0
        with ExitStack() as writing:
            writers = [
                writing.enter_context(Writer(store, provenance=provenance)) for store in self.stores
            ]
            for keys, rows in batches:
                parts = np.split(rows, self._edges, axis=-1)
                for i, key in enumerate(keys):
                    if defect := self._guard.defect(rows[i]):
                        unusable[key] = defect
                        continue
                    for writer, part in zip(writers, parts, strict=True):
                        writer.add(key, part[i])
                    written += 1
                advance(written + len(unusable) - done)
                done = written + len(unusable)


def _first_usable(batches: Iterator[Batch]) -> list[Batch]:
    """The first batch that holds an image; empty if there is none."""
    for keys, pixels in batches:
        if any(keys):
            return [(keys, pixels)]
    return []


def _timed(values: Iterable[_T], waited: defaultdict[str, float], name: str) -> Iterator[_T]:
    """The same values; adds up the seconds of waiting for each."""
    iterator = iter(values)
    while True:
        start = time.monotonic()
        value = next(iterator, None)
        waited[name] += time.monotonic() - start
        if value is None:
            return
        yield value


def _log_limit(
    title: str, seconds: float, waited: defaultdict[str, float], device: Mapping[str, float]
) -> None:
    """Log what limited the speed: waiting times as shares of the whole time."""
    writing = seconds - sum(waited.values())
    parts = {**waited, "writing": writing}
    shares = ", ".join(f"{name} {part / seconds:.0%}" for name, part in parts.items())
    on_device = ", ".join(f"{name} {part / seconds:.0%}" for name, part in device.items() if part)
    limit = max(parts, key=lambda name: parts[name])
    _LOG.info(
        "%s: %.1f s, of which %s%s; slowest: %s",
        *(title, seconds, shares, f" (the GPU is busy with {on_device})" * bool(on_device), limit),
    )


def _warn_if_full(store: FeatureStore, size: int) -> None:
    needed, free = int(size * 1.1), disk.free_bytes(store.path)
    if free is not None and free < needed:
        _LOG.warning(
            "%s: about %d MB are needed and %d MB are free; what fits will be kept",
            *(store.path, needed >> 20, free >> 20),
        )


def _skips(samples: Samples, unusable: Mapping[bytes, str]) -> list[SkippedImage]:
    """The samples whose image could not be used in this run."""
    return [
        SkippedImage(
            domain=str(samples.domain[i]),
            path=samples.items[i].path,
            reason=unusable[key],
            key="" if unusable[key] == CHANGED else key.hex(),
        )
        for i, key in enumerate(samples.key)
        if key in unusable
    ]


def _emptied(samples: Samples, skipped: Sequence[SkippedImage]) -> dict[str, Exception]:
    """Domains that lost all their images, with the reason."""
    failures: dict[str, Exception] = {}
    lost = {(skip.domain, skip.path): skip.reason for skip in skipped}
    for domain in dict.fromkeys(samples.domain.tolist()):
        paths = [samples.items[i].path for i in np.flatnonzero(samples.domain == domain)]
        if all((domain, path) in lost for path in paths):
            with record_failure(domain, failures):
                raise NoImagesError(
                    f"none of its images can be used; first: {paths[0]}: {lost[domain, paths[0]]}"
                )
    return failures
