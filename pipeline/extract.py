"""Stage 1: run the frozen backbones once over what their stores do not hold yet."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from importlib import resources
from itertools import chain, islice
from typing import Any

import numpy as np

from cache import FeatureStore, Writer, check_canaries, disk
from cache.part import provenance_text
from cache.upkeep import compact, gc
from pipeline.backbones import policy_of, spec_of, state_digest
from pipeline.engines import (
    Engine,
    EngineChoice,
    Features,
    check_choice,
    fallback_note,
    start_engine,
)
from pipeline.errors import NoImagesError, SkippedImagesError, WeightsError
from pipeline.images import PixelPolicy, decode
from pipeline.joined import FEATURES_REPORT
from pipeline.progress import Progress
from pipeline.recipes import frozen_network, store_for
from pipeline.samples import SampleOptions, Samples, Skip, load_samples
from pipeline.sources import Item
from pipeline.stream import TRANSIENT, FeatureGuard, decoded, features_of
from pipeline.study import BackboneChoice, Study

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """How stage 1 runs.

    Attributes:
        engine: See :class:`pipeline.engines.EngineChoice`.
        samples: See :class:`pipeline.samples.SampleOptions`.
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
            f"{len(skipped)} images were skipped and --strict is set; first: {first}. "
            "The features of all others are stored"
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
        self._advance: Callable[[], None] = lambda: None

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
        self._store.prepare()
        gc(self._store)
        _warn_if_full(self._store, len(missing), spec_of(self._choice.name).dim)
        policy = policy_of(self._choice.name, self._choice.resize, self._choice.mask)
        images = decoded(dict(missing), policy, self._skip)
        first = list(islice(images, 1))
        if first:  # no network is built for images that are all unusable
            with closing(self._start_engine(policy)) as engine:
                self._run(engine, chain(first, images), len(missing))
            compact(self._store)

    def _run(self, engine: Engine, images: Any, total: int) -> None:
        # Masked pictures may well be equal: many have four black corners.
        guard = FeatureGuard(copies=self._choice.mask != "none")
        provenance = provenance_text(engine.provenance())
        with (
            Progress(self._title, total) as progress,
            Writer(self._store, provenance=provenance) as writer,
        ):
            self._advance = progress.advance
            for key, row in features_of(images, engine):
                objection = guard.objection(row)
                if objection:
                    self._bad[key] = objection
                else:
                    writer.add(key, row)
                progress.advance()
        if guard.same and self._choice.mask == "none":
            _LOG.warning(
                "%s: %d images have the features of another image: the same pixels in other bytes",
                self._choice.name,
                guard.same,
            )

    def _start_engine(self, policy: PixelPolicy) -> Engine:
        network = frozen_network(self._choice)
        if state_digest(network.network) != self._store.recipe.weights:
            raise WeightsError(
                f"the weights of {self._choice.name} changed while the run was under way, or "
                "their remembered digest is damaged: delete index/weights.json beside the "
                "stores and run again"
            )
        engine = start_engine(network, self._options.engine, self._choice.precision)
        _LOG.info("%s: %s", self._choice.name, engine.description)
        if note := fallback_note(engine):
            _LOG.warning("%s", note)
        check_canaries(
            self._store.path,
            self._store.recipe,
            canary_features(engine, policy),
            provenance=engine.provenance(),
        )
        return engine

    def _skip(self, key: bytes, reason: str) -> None:
        self._bad[key] = reason
        self._advance()


def canary_features(engine: Engine, policy: PixelPolicy) -> Features:
    """Features of the four images shipped with the package, shape ``(4, ...)``."""
    folder = resources.files("pipeline") / "canaries"
    files = sorted((f for f in folder.iterdir() if f.name[0] != "."), key=lambda f: f.name)
    images = [(f.name.encode(), decode(f.read_bytes(), policy)) for f in files]
    return np.stack([row for _, row in features_of(images, engine)])


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
            "%d images are byte-identical copies of another; each shares its feature row", copies
        )


def _warn_if_full(store: FeatureStore, rows: int, dim: int) -> None:
    needed = int(rows * dim * 4 * 1.1)
    free = disk.free_bytes(store.path)
    if free is not None and free < needed:
        _LOG.warning(
            "%s: about %d MB are needed and %d MB are free; what fits will be kept",
            store.path,
            needed >> 20,
            free >> 20,
        )


def _write(study: Study, report: ExtractReport, name: str) -> None:
    disk.make_dir(study.results)
    text = json.dumps(asdict(report), indent=1)
    disk.publish(study.results / name, text.encode())
