"""Stage 1: run the frozen backbones once over what their stores do not hold yet."""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from cache import FeatureStore, disk
from pipeline.backbones import policy_of, spec_of
from pipeline.errors import NoImagesError, SkippedImagesError
from pipeline.features.engines import EngineChoice, check_choice
from pipeline.features.filling import Filling, check_weights
from pipeline.features.joined import FEATURES_REPORT
from pipeline.features.recipes import frozen_network, store_for
from pipeline.features.stream import TRANSIENT
from pipeline.progress import Progress
from pipeline.samples import SampleOptions, Samples, Skip
from pipeline.samples.gather import load_samples
from pipeline.sources import Item
from pipeline.study import BackboneChoice, Study
from pipeline.text.counts import are, counted

if TYPE_CHECKING:
    from pipeline.backbones.frozen import Frozen

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """How stage 1 runs.

    Attributes:
        engine: See :class:`pipeline.features.engines.EngineChoice`.
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
