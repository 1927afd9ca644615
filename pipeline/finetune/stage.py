"""Stage 3: train heads, parts and whole networks on the same images and compare them.

Methods see the fit split; the validation split is looked at for early stopping and for
the mixture of WiSE-FT, targets for nothing at all. Each model is kept as soon as it is
trained, so a run that is cut off goes on where it was, and a run of one method leaves
those of others in the comparison.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from cache import disk
from pipeline.data.samples import SampleOptions, Samples, load_samples
from pipeline.errors import EngineError, StudyError
from pipeline.evaluation.predictions import predictions_of, write_predictions
from pipeline.features.load import load_features
from pipeline.finetune import distributed as parallel
from pipeline.finetune.cuts import cut_of
from pipeline.finetune.data import limited
from pipeline.finetune.evaluate import (
    Model,
    PairRow,
    Row,
    heads_of_other_images,
    pairs_of,
    rows_of,
    to_json,
)
from pipeline.finetune.interpolate import mix_method
from pipeline.finetune.methods import (
    FIRST_BLOCK,
    METHODS,
    TAIL,
    TrainingOptions,
    asked,
    chosen,
    end_of_line,
    settings_of,
)
from pipeline.finetune.runs import Record, models_in
from pipeline.finetune.settings import LoopSettings
from pipeline.finetune.training import OWN, Workbench, digest_of, train_method
from pipeline.study import BackboneChoice, Study

_LOG = logging.getLogger(__name__)
SCHEMA = 2


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """How stage 3 runs.

    Attributes:
        methods: Entries of ``METHODS``, or ``all``; none takes ``QUICK``.
        limit: At most so many images of each split of each domain; None takes all.
        training: See :class:`pipeline.finetune.methods.TrainingOptions`.
        samples: See :class:`pipeline.data.samples.SampleOptions`.
    """

    methods: tuple[str, ...] = ()
    limit: int | None = None
    training: TrainingOptions = field(default_factory=TrainingOptions)
    samples: SampleOptions = field(default_factory=SampleOptions)

    @property
    def tag(self) -> str:
        """Ends the names of results: a trial with fewer or smaller images has files of its own."""
        size = self.training.image_size
        return "".join([f"-limit{self.limit}" if self.limit else "", f"-{size}px" if size else ""])


@dataclass(frozen=True, kw_only=True)
class ComparisonReport:
    """All trained models of a study.

    Attributes:
        classes: In label order; with two classes the second is the positive one.
        rows: By backbone in the study's order, then in the order of ``METHODS``.
        pairs: Frozen against trained on the same images.
        other_heads: Backbones whose heads of stage 2 were fitted to other images, as all are
            beside a trial with fewer: they are in no pair.
        unlabelled: Images of each target without labels: no row scores them.
        file: Where it is written.
        probabilities: Where those of each image are.
    """

    study: str
    classes: tuple[str, ...]
    rows: tuple[Row, ...]
    pairs: tuple[PairRow, ...]
    other_heads: tuple[str, ...]
    unlabelled: Mapping[str, int]
    file: Path
    probabilities: Path


def finetune(study: Study, options: FinetuneOptions | None = None) -> ComparisonReport:
    """Train methods on every backbone of a study, and compare all that were ever trained.

    Returns:
        The report; also written to ``results/<study>/comparison.json``, and the
        probability of each class for each image to ``finetune.h5`` beside it.

    Raises:
        UnknownNameError: A method is in no table.
        NoCutError: A part of a backbone is to be trained that has no cut.
        MissingFeaturesError: Stage 1 has not been run.
        PipelineError: See the modules this calls.
    """
    options = options or FinetuneOptions()
    names = chosen(options.methods)
    _check(study, names, options)
    disk.check_writable(study.results)
    with parallel.joined(_device(options.training.device)) as device:
        tables: dict[str, Samples] = {}
        samples, _ = load_samples(study, options.samples)
        for number, choice in enumerate(study.backbones):
            usable = load_features(study, choice, samples).samples
            bench = _bench(study, choice, usable, options, device)
            tables[choice.name] = bench.samples
            if not number:
                tables[OWN] = bench.samples
            for name in names:
                if METHODS[name].pretrained or not number:
                    _run(bench, name, names)
        models = _models(study, options, tables)
        report = _report(study, options, tables, models)
        if parallel.group().rank == 0:
            _write(report, tables, models)
    return report


def _check(study: Study, names: Sequence[str], options: FinetuneOptions) -> None:
    """What cannot work must show before the first method has trained for an hour."""
    for choice in study.backbones:
        for name in names:
            if METHODS[name].moves in (TAIL, FIRST_BLOCK):
                cut_of(choice.name)
    for what, value in (("limit", options.limit), ("image size", options.training.image_size)):
        if value is not None and value < 1:
            raise StudyError(f"{what} {value}: allowed is 1 or more")
    # Settings refuse what is in no table or out of range, also where no method uses it.
    LoopSettings(augmentation=options.training.augmentation)
    for name in names:
        settings_of(METHODS[name], options.training, seed=study.seed)


def _device(asked: str) -> str:
    here = torch.cuda.is_available()
    if asked == "auto":
        return "cuda" if here else "cpu"
    if asked == "cuda" and not here:
        raise EngineError("no CUDA device is here: use --device cpu, or leave it at auto")
    return asked


def _bench(
    study: Study, choice: BackboneChoice, samples: Samples, options: FinetuneOptions, device: str
) -> Workbench:
    return Workbench(
        study=study,
        choice=choice,
        samples=limited(samples, options.limit, study.seed),
        options=replace(options.training, asked=frozenset(asked(options.methods))),
        device=device,
        folder=study.results / f"finetune{options.tag}",
    )


def _run(bench: Workbench, name: str, names: Sequence[str]) -> Record:
    _LOG.info("%s on %s", name, bench.backbone(name))
    if METHODS[name].trains:
        return train_method(bench, name)
    return mix_method(bench, name, end_of_line(names))


def _report(
    study: Study, options: FinetuneOptions, tables: dict[str, Samples], models: Sequence[Model]
) -> ComparisonReport:
    rows: list[Row] = []
    for backbone in dict.fromkeys(m.record.backbone for m in models):
        own = [m for m in models if m.record.backbone == backbone]
        rows += rows_of(tables[backbone], own, study.results, study.seed)
    return ComparisonReport(
        study=study.name,
        classes=tables[OWN].classes,
        rows=tuple(rows),
        pairs=tuple(pairs_of(tables, models, study.results, study.seed)),
        other_heads=heads_of_other_images(
            study.results, {name: s for name, s in tables.items() if name != OWN}
        ),
        unlabelled=tables[OWN].unlabelled,
        file=study.results / f"comparison{options.tag}.json",
        probabilities=study.results / f"finetune{options.tag}.h5",
    )


def _models(study: Study, options: FinetuneOptions, tables: dict[str, Samples]) -> list[Model]:
    """Every kept model of these images, in the order of the table."""
    found = []
    digests = {backbone: digest_of(samples) for backbone, samples in tables.items()}
    for folder in models_in(study.results / f"finetune{options.tag}"):
        record = folder.record()
        if record is None or record.method not in METHODS or record.backbone not in tables:
            continue
        if digests[record.backbone] != record.samples:
            _LOG.warning(
                "%s: the study's images have changed since, so it is not in the comparison; "
                "run --method %s again",
                folder.path.name,
                record.method,
            )
            continue
        found.append(Model(record=record, proba=folder.probabilities()))
    order = [*(name for name in tables if name != OWN), OWN, *METHODS]
    found.sort(
        key=lambda m: (order.index(m.record.backbone), order.index(m.record.method), m.record.seed)
    )
    return found


def _write(report: ComparisonReport, tables: dict[str, Samples], models: Sequence[Model]) -> None:
    kept = {}
    for backbone in dict.fromkeys(m.record.backbone for m in models):
        own = [m for m in models if m.record.backbone == backbone]
        proba = {(m.record.method, m.record.seed): m.proba for m in own}
        kept[backbone] = predictions_of(tables[backbone], proba)
    write_predictions(report.probabilities, kept)
    text = json.dumps(report_json(report), indent=1, allow_nan=False)
    disk.publish(report.file, text.encode())


def report_json(report: ComparisonReport) -> dict[str, Any]:
    """The report as JSON values; the schema's version is in it."""
    return {
        "schema": SCHEMA,
        "study": report.study,
        "classes": list(report.classes),
        "rows": [to_json(row) for row in report.rows],
        "pairs": [
            {"backbone": row.backbone, "seed": row.seed, **asdict(row.pair)} for row in report.pairs
        ],
        "unlabelled": dict(report.unlabelled),
    }
