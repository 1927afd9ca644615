"""One method on one backbone: from the images of a study to a trained model on disk.

A workbench holds what the methods of one backbone share and makes each thing when it is
first asked for: pixels, stored activations, the folder of each model.
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.patients import FIT
from pipeline.data.patients import VALIDATION as VALIDATION_SPLIT
from pipeline.data.samples import Samples
from pipeline.features.backbones import spec_of, weights_file
from pipeline.features.engines import EngineChoice
from pipeline.finetune import distributed as parallel
from pipeline.finetune.checkpoint import Checkpoints
from pipeline.finetune.cuts import Place, Taken, store_at, take
from pipeline.finetune.data import Source, pixels_of
from pipeline.finetune.distributed import named_errors
from pipeline.finetune.history import History, convergence
from pipeline.finetune.loop import VALIDATION, predict, train
from pipeline.finetune.methods import (
    ACTIVATIONS,
    BASELINE,
    METHODS,
    PIXELS,
    Method,
    TrainingOptions,
    settings_of,
)
from pipeline.finetune.networks import (
    Assembly,
    Material,
    assemble,
    check_takes,
    count_parameters,
    cross_entropy,
    forward_gflop,
)
from pipeline.finetune.runs import ModelFolder, Proba, Record
from pipeline.finetune.settings import LoopSettings
from pipeline.progress import Progress
from pipeline.study import SOURCE, BackboneChoice, Study

_LOG = logging.getLogger(__name__)
#: In the place of a backbone's name for networks that have none.
OWN = "pixels"


@dataclass(kw_only=True)
class Workbench:
    """What the methods of one backbone share.

    Attributes:
        study: The study.
        choice: The backbone.
        samples: Usable images, in one order for all methods.
        options: See :class:`TrainingOptions`.
        device: ``cpu``, ``cuda`` or ``cuda:<n>``.
        folder: Where models are kept.
    """

    study: Study
    choice: BackboneChoice
    samples: Samples
    options: TrainingOptions
    device: str
    folder: Path
    _taken: dict[bool, Taken] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """Of everything that is drawn."""
        return self.study.seed if self.options.seed is None else self.options.seed

    @cached_property
    def pixels(self) -> Source:
        """Of all samples."""
        return pixels_of(self.samples, self.place(at_cut=False).policy)

    @cached_property
    def weights(self) -> str:
        """Digest of the backbone's weights, as the stores know it."""
        return store_at(self.study, self.place(at_cut=False)).recipe.weights

    def place(self, *, at_cut: bool) -> Place:
        """Where the frozen part ends."""
        return Place(choice=self.choice, size=self.options.image_size, at_cut=at_cut)

    def taken(self, *, at_cut: bool) -> Taken:
        """Stored rows of all samples; rank 0 computes what is missing, the others wait."""
        if at_cut not in self._taken:
            place = self.place(at_cut=at_cut)
            kind, size = self.device.split(":")[0], self.options.batch_size
            engine = EngineChoice(device=kind, batch_size=size if kind == "cuda" else None)
            if parallel.group().rank == 0:
                with named_errors(self.device, size):
                    self._taken[at_cut] = take(self.study, place, self.samples, engine)
            wait_for_all(self.device)
            if parallel.group().rank:
                self._taken[at_cut] = take(self.study, place, self.samples, engine)
        return self._taken[at_cut]

    def source(self, method: Method) -> Source:
        """What a method reads."""
        if method.reads == PIXELS:
            return self.pixels
        return self.taken(at_cut=method.reads == ACTIVATIONS).examples

    def model(self, name: str) -> ModelFolder:
        """The folder of a method's model on this bench."""
        return ModelFolder(self.folder / f"{name}-{self.backbone(name)}-{self.seed}")

    def backbone(self, name: str) -> str:
        """Name of a method's backbone in tables and folders."""
        return self.choice.name if METHODS[name].pretrained else OWN

    def rows(self, split: str) -> NDArray[np.intp]:
        """Samples of a split."""
        return np.flatnonzero(self.samples.split == split)

    def assemble(self, name: str) -> Assembly:
        """The networks of a method, with nothing trained in them."""
        material = Material(
            backbone=self.choice.name,
            file=weights_file(self.choice.name, self.choice.weights),
            policy=self.place(at_cut=False).policy,
            classes=len(self.samples.classes),
            seed=self.seed,
        )
        return assemble(name, METHODS[name], material)

    def settings(self, name: str) -> LoopSettings:
        """Of the loop."""
        found = settings_of(METHODS[name], self.options.of(name), seed=self.seed)
        on_cuda = self.device.startswith("cuda")
        precision = self.choice.precision if on_cuda else "fp32"
        return replace(found, device=self.device, precision=precision)

    def identity(self, name: str) -> dict[str, Any]:
        """All that determines a model, beside the libraries and the device."""
        method = METHODS[name]
        settings = asdict(self.settings(name))
        del settings["device"]
        return {
            "study": self.study.name,
            "classes": list(self.samples.classes),
            "method": name,
            "backbone": self.backbone(name),
            "weights": self.weights if method.pretrained else None,
            "preprocessing": self.place(at_cut=False).policy.to_json(),
            "images": digest_of(self.samples.where(self.samples.domain == SOURCE)),
            "starts from": [self.model(one).weights_sha256() for one in method.starts_from],
            **({f"settings.{k}": v for k, v in settings.items()} if method.trains else {}),
        }


def train_method(bench: Workbench, name: str) -> Record:
    """Train a method, unless its model is there already, and keep it with what it predicts.

    A method that was not asked for, but that others start from, is taken as it is there,
    however it was trained: whoever wants another asks for it by name.

    Raises:
        CheckpointError: A training of another identity was cut off in its folder.
        PipelineError: See the modules this calls.
    """
    model, method = bench.model(name), METHODS[name]
    identity, samples = bench.identity(name), digest_of(bench.samples)
    record = model.record()
    wait_for_all(bench.device)  # or a late process would see what the first is about to write
    if (
        record
        and record.samples == samples
        and (record.identity == identity or not bench.options.asks_for(name))
    ):
        _LOG.info("%s on %s: trained already", name, bench.backbone(name))
        return record
    assembly = bench.assemble(name)
    if size := bench.options.image_size:
        check_takes(assembly.whole, size, spec_of(bench.choice.name).policy.size)
    source = bench.source(method)
    if record and record.identity == identity:  # trained, but images were added since
        assembly.load(model.state())
        return _keep(bench, model, replace(record, samples=samples), assembly, source)
    for start in method.starts_from:
        assembly.load(bench.model(start).state())
    costs = _costs(bench, method, assembly, source)
    history = train(
        assembly.trained,
        source.take(bench.rows(FIT)),
        {VALIDATION: source.take(bench.rows(VALIDATION_SPLIT))},
        bench.settings(name),
        criterion=cross_entropy(),
        checkpoints=Checkpoints(model.checkpoints, identity),
        progress=Progress(f"{name}, {bench.backbone(name)}"),
    )
    record = Record(
        method=name,
        backbone=bench.backbone(name),
        seed=bench.seed,
        moved=method.moved,
        identity=identity,
        samples=samples,
        **costs,
        **_measured(history),
        extrapolated=_extrapolated(name, history),
    )
    return _keep(bench, model, record, assembly, source)


def _keep(
    bench: Workbench, model: ModelFolder, record: Record, assembly: Assembly, source: Source
) -> Record:
    """Predict every sample, then put the model in place; rank 0 does it, the others wait."""
    if parallel.group().rank == 0:
        everything = np.arange(len(bench.samples))
        proba = predict_all(bench, assembly, source, everything)
        model.save(record, assembly.state(), proba)
    wait_for_all(bench.device)
    return record


def predict_all(
    bench: Workbench, assembly: Assembly, source: Source, rows: NDArray[np.intp]
) -> Proba:
    """Probabilities of samples, shape ``(n, K)``, from what the method reads."""
    examples = source.take(rows)
    size = bench.options.batch_size
    return predict(assembly.trained, examples, batch_size=size, device=bench.device)


def _costs(bench: Workbench, method: Method, assembly: Assembly, source: Source) -> dict[str, Any]:
    """What can be said before the first step."""
    taken = None if method.reads == PIXELS else bench.taken(at_cut=method.reads == ACTIVATIONS)
    one = np.zeros(1, np.intp)
    pixels = torch.zeros((1, *[bench.place(at_cut=False).policy.size] * 2, 3), dtype=torch.uint8)
    trainable, _ = count_parameters(assembly.trained)
    return {
        "trainable_parameters": trainable,
        "parameters": count_parameters(assembly.whole)[1],
        "gflop_per_image": forward_gflop(assembly.whole, pixels),
        "gflop_per_trained_image": forward_gflop(assembly.trained, source.take(one).batch(one)),
        "stored": {
            "images": taken.computed if taken else 0,
            "seconds": taken.seconds if taken else 0.0,
        },
    }


def _measured(history: History) -> dict[str, Any]:
    seconds = sum(row.seconds for row in history.rows)
    trained = sum(row.seconds * row.images_per_second for row in history.rows)
    losses = [row.validation_loss for row in history.rows if row.validation_loss is not None]
    return {
        "epochs": len(history.rows),
        "seconds": seconds,
        "validation_seconds": sum(row.validation_seconds for row in history.rows),
        "images_per_second": trained / seconds,
        "peak_memory_bytes": history.peak_memory_bytes,
        "best_epoch": history.best_epoch,
        "kept_epoch": history.kept_epoch,
        "stopped_early": history.stopped_early,
        "convergence": convergence(losses),
        "curves": tuple(asdict(row) for row in history.rows),
    }


def _extrapolated(name: str, history: History) -> Mapping[str, float] | None:
    """``frozen_online`` costs every epoch the same, so few of them tell of as many as lp has."""
    epochs = METHODS[BASELINE].epochs
    if name != "frozen_online" or len(history.rows) >= epochs:
        return None
    each = sum(row.seconds for row in history.rows) / len(history.rows)
    return {"epochs": epochs, "seconds": each * epochs}


def digest_of(samples: Samples) -> str:
    """Stands for images, labels and splits in their order; hex, 16 digits."""
    digest = hashlib.sha256()
    for row, key in enumerate(samples.key):
        place = f"{samples.domain[row]}|{samples.split[row]}|{samples.label[row]}"
        digest.update(key + place.encode())
    return digest.hexdigest()[:16]


def wait_for_all(device: str) -> None:
    """Of a group of processes, none goes on before all are here."""
    parallel.summed(torch.zeros(1, device=device))
