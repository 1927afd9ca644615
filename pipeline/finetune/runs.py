"""One run: a method on a backbone, from the images of a study to a saved model.

A saved model is a folder of three files: weights, measurements, and the probabilities of every
image. They are a set (see ``pipeline.results``); a set that was incomplete when the process died
counts as missing. Nothing is pickled.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor, nn

from cache.recipe import Recipe
from cache.store import FeatureStore
from pipeline.data.images import Transform
from pipeline.data.patients import FIT, VALIDATION
from pipeline.data.samples import Samples
from pipeline.errors import MissingResultsError, ResultsError
from pipeline.evaluation.metrics import Proba, score
from pipeline.features.backbones import spec_of, transform_of, weights_file
from pipeline.features.engines import EngineChoice
from pipeline.features.frozen import FeatureExtractor, build
from pipeline.features.load import check_weights, store_for
from pipeline.finetune import distributed as parallel
from pipeline.finetune.checkpoint import Checkpoints
from pipeline.finetune.data import Examples, load_pixels, stored_rows
from pipeline.finetune.distributed import barrier, batch_errors
from pipeline.finetune.loop import predict, train
from pipeline.finetune.methods import (
    ACTIVATIONS,
    BASELINE,
    METHODS,
    PIXELS,
    TrainingSettings,
    resolve_settings,
)
from pipeline.finetune.networks import BATCH_NORMS, Assembly, assemble, check_image_size, cut_of
from pipeline.progress import Progress
from pipeline.results import ResultSet, read_set, write_set
from pipeline.study import SOURCE, BackboneChoice, Study

_LOG = logging.getLogger(__name__)
_FORMAT = 5
_STAGE = "finetune"
_RECORD, _WEIGHTS, _PROBABILITIES = "model.json", "model.safetensors", "probabilities.safetensors"
_CHECKPOINTS = "checkpoints"  # folder in that of a model, while it is trained
#: Name instead of a backbone's for networks without one.
FROM_PIXELS = "pixels"

#: Tried values of alpha, the position between the first model and the second.
ALPHAS = tuple(step / 10 for step in range(11))


@dataclass(frozen=True, kw_only=True)
class Record:
    """One trained model and what its training cost; JSON types only.

    Attributes:
        method: Entry of ``METHODS``.
        backbone: Its name; ``pixels`` for a network without one.
        seed: Seed of everything random.
        identity: Everything that determines the model, except the libraries.
        samples: Digest of the images, labels and splits that the probabilities belong to.
        trainable_parameters: Number of trained values, including the head.
        curves: A row for each epoch; see :class:`pipeline.finetune.checkpoint.EpochRow`.
        interpolated: For a model between two others: ``from``, ``to`` and ``alpha``; the other
            fields are then those of the second model.
    """

    method: str
    backbone: str
    seed: int
    identity: Mapping[str, Any]
    samples: str
    trainable_parameters: int
    curves: Sequence[Mapping[str, Any]]
    interpolated: Mapping[str, Any] | None = None


class ModelFolder:
    """The folder of one trained model: ``results/<study>/finetune/<method>-<backbone>-<seed>``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def record(self) -> Record | None:
        """The record of the model; None if there is no complete model."""
        results = self._read()
        return None if results is None else Record(**results.record["record"])

    def weights_sha256(self) -> str:
        """Digest of the weights, for the identity of models that start from them."""
        results = self._read()
        return str(results and results.digests[_WEIGHTS])

    def state(self) -> dict[str, Tensor]:
        """The tensors of the whole network, by name."""
        return load(read_set(self.path / _RECORD, _STAGE).read(_WEIGHTS))

    def probabilities(self) -> Proba:
        """Shape ``(n, K)``, in the order of the samples that the record names."""
        data = read_set(self.path / _RECORD, _STAGE).read(_PROBABILITIES)
        return load(data)["probabilities"].numpy()

    def save(self, record: Record, state: Mapping[str, Tensor], proba: Proba) -> None:
        """Save a complete model and remove its checkpoints.

        Raises:
            CacheError: The disk refused the write.
        """
        files = {
            _WEIGHTS: save({name: t.detach().cpu().contiguous() for name, t in state.items()}),
            _PROBABILITIES: save({"probabilities": torch.from_numpy(np.ascontiguousarray(proba))}),
        }
        content = {"format": _FORMAT, "record": asdict(record)}
        write_set(self.path / _RECORD, content, files, owned=(f"{_CHECKPOINTS}/*",))

    def _read(self) -> ResultSet | None:
        """The set of files; None unless all files are as they were written."""
        try:
            results = read_set(self.path / _RECORD, _STAGE)
            results.check()
        except MissingResultsError:
            return None
        except ResultsError as cause:
            _LOG.warning("%s. It is trained again when its method runs", cause)
            return None
        return results if results.record.get("format") == _FORMAT else None


@dataclass(kw_only=True)
class Experiment:
    """One backbone on the images of a study: what its methods share, made when first needed.

    Attributes:
        study: The study with images and stores.
        choice: The backbone.
        samples: Usable images, in the same order for all methods.
        folder: Where models are saved.
        device: ``cpu``, ``cuda`` or ``cuda:<n>``.
        image_size: Side of the images, pixels; None takes the backbone's.
        given: The user's settings; see :func:`resolve_settings`.
        named: Methods that the user named. Methods that only others start from keep their
            epochs and learning rate.
    """

    study: Study
    choice: BackboneChoice
    samples: Samples
    folder: Path
    device: str = "cpu"
    image_size: int | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    named: frozenset[str] = frozenset(METHODS)
    _held: dict[str, Examples] = field(default_factory=dict)

    @property
    def transform(self) -> Transform:
        """From bytes to the pixels that networks see."""
        transform = transform_of(replace(self.choice, decode="cpu", views=1))
        return replace(transform, size=self.image_size or transform.size)

    def store(self, *, at_cut: bool) -> FeatureStore:
        """The store of the backbone's features, or of unpooled activations at its cut."""
        recipe = store_for(self.study.store_root, self.choice).recipe
        recipe = replace(recipe, preprocessing=self.transform.to_json())
        if at_cut:
            recipe = replace(recipe, cut=cut_of(self.choice.name).where, pooling="none")
        return FeatureStore(self.study.store_root, recipe)

    def examples(self, name: str) -> Examples:
        """The inputs of a method for all samples, loaded once."""
        reads, folder = METHODS[name].reads, self.study.results
        if reads not in self._held:
            self._held[reads] = (
                load_pixels(self.samples, self.transform, folder=folder, device=self.device)
                if reads == PIXELS
                else self._stored(at_cut=reads == ACTIVATIONS)
            )
        return self._held[reads]

    def _stored(self, *, at_cut: bool) -> Examples:
        """Stored rows; rank 0 computes missing ones while the others wait."""
        kind, size = self.device.split(":")[0], self.settings(BASELINE).batch_size
        first = parallel.group().rank == 0
        if not first:
            barrier(self.device)
        with batch_errors(self.device, size):
            store = self.store(at_cut=at_cut)
            rows = stored_rows(
                store,
                self.samples,
                build=partial(self._frozen, store.recipe, at_cut=at_cut),
                transform=self.transform,
                engine=EngineChoice(device=kind, batch_size=size if kind == "cuda" else None),
                device=self.device,
            )
        if first:
            barrier(self.device)
        return rows

    def _frozen(self, recipe: Recipe, *, at_cut: bool) -> FeatureExtractor:
        network = build(self.choice.name, weights_file(self.choice.name, self.choice.weights))
        check_weights(network, recipe)
        part = cut_of(self.choice.name).split(network)[0] if at_cut else network
        return FeatureExtractor(part, self.transform)

    def rows(self, split: str) -> NDArray[np.intp]:
        """Row numbers of the samples of a split."""
        return np.flatnonzero(self.samples.split == split)

    def backbone(self, name: str) -> str:
        """Name of a method's backbone in tables and folders."""
        return self.choice.name if METHODS[name].pretrained else FROM_PIXELS

    def settings(self, name: str) -> TrainingSettings:
        """Settings of one method's training."""
        return resolve_settings(
            name,
            self.given,
            named=name in self.named,
            seed=self.study.seed,
            device=self.device,
            precision=self.choice.precision,
            images=len(self.rows(FIT)),
        )

    def model(self, name: str) -> ModelFolder:
        """The folder of a method's model."""
        seed = self.settings(name).seed
        return ModelFolder(self.folder / f"{name}-{self.backbone(name)}-{seed}")

    def assemble(self, name: str) -> Assembly:
        """The untrained network of a method."""
        built = assemble(
            name,
            self.choice.name,
            weights_file(self.choice.name, self.choice.weights),
            transform=self.transform,
            classes=len(self.samples.classes),
            seed=self.settings(name).seed,
        )
        if self.image_size:
            check_image_size(built.whole, self.image_size, spec_of(self.choice.name).transform.size)
        return built

    def predict(self, name: str, assembly: Assembly, rows: NDArray[np.intp]) -> Proba:
        """Probabilities of samples, shape ``(m, K)``, from what the method reads."""
        examples, size = self.examples(name).take(rows), self.settings(name).batch_size
        return predict(assembly.trained, examples, batch_size=size, device=self.device)

    def identity(self, name: str) -> dict[str, Any]:
        """Everything that determines a model, except the libraries and the device."""
        method, settings = METHODS[name], asdict(self.settings(name))
        del settings["device"]
        store = self.store(at_cut=False)
        return {
            "study": self.study.name,
            "classes": list(self.samples.classes),
            "method": name,
            "backbone": self.backbone(name),
            "weights": store.recipe.weights if method.pretrained else None,
            "preprocessing": self.transform.to_json(),
            "images": samples_digest(self.samples.where(self.samples.domain == SOURCE)),
            "starts from": [self.model(start).weights_sha256() for start in method.starts_from],
            **({f"settings.{k}": v for k, v in settings.items()} if method.trains else {}),
        }


def samples_digest(samples: Samples) -> str:
    """Digest of images, labels and splits in their order; hex, 16 digits."""
    digest = hashlib.sha256()
    for row, key in enumerate(samples.key):
        text = f"{samples.domain[row]}|{samples.split[row]}|{samples.label[row]}"
        digest.update(key + text.encode())
    return digest.hexdigest()[:16]


def run_method(run: Experiment, name: str) -> None:
    """Train the model of a method and save it with its predictions, unless it exists already.

    An existing model of a method that only others start from is used as it is, whatever its
    settings.

    Raises:
        CheckpointError: Another training was interrupted in its folder.
        PipelineError: See the modules this calls.
    """
    model, identity, samples = run.model(name), run.identity(name), samples_digest(run.samples)
    record, is_first = model.record(), parallel.group().rank == 0
    barrier(run.device)  # or a late process would see what the first is about to write
    is_current = record is not None and record.identity == identity
    if record and record.samples == samples and (is_current or name not in run.named):
        _LOG.info("%s on %s: trained already", name, run.backbone(name))
        return
    assembly, proba = run.assemble(name), None
    if not METHODS[name].trains:
        if is_first:
            record, proba = _interpolate(run, name, assembly)
    elif record and is_current:  # trained, but images were added since
        assembly.load(model.state())
    else:
        record = _train(run, name, assembly, identity)
    if is_first and record:
        if proba is None:
            proba = run.predict(name, assembly, np.arange(len(run.samples)))
        model.save(replace(record, identity=identity, samples=samples), assembly.state(), proba)
    barrier(run.device)


def _train(run: Experiment, name: str, assembly: Assembly, identity: Mapping[str, Any]) -> Record:
    for start in METHODS[name].starts_from:
        assembly.load(run.model(start).state())
    examples, settings, network = run.examples(name), run.settings(name), assembly.trained
    rows = train(
        network,
        examples.take(run.rows(FIT)),
        examples.take(run.rows(VALIDATION)),
        settings,
        checkpoints=Checkpoints(run.model(name).path / _CHECKPOINTS, identity),
        progress=Progress(f"{name}, {run.backbone(name)}"),
    )
    return Record(
        method=name,
        backbone=run.backbone(name),
        seed=settings.seed,
        identity=identity,
        samples="",
        trainable_parameters=sum(p.numel() for p in network.parameters() if p.requires_grad),
        curves=[asdict(row) for row in rows],
    )


# WiSE-FT (Wortsman et al. 2022): weights interpolated between a linear probe and a fine-tuned
# network. Wortsman's networks have no BatchNorm. A BatchNorm is interpolated as its
# resulting scale and shift, not as weights and statistics separately: variances of radiographs
# can be a thousandth of those of ImageNet, and a tenth of the latter in the mean switches
# channels off (on chest X-rays, accuracy at alpha 0.9 then fell from 94 to 61 % on validation).


def _interpolate(run: Experiment, name: str, assembly: Assembly) -> tuple[Record, Proba]:
    """The interpolated model with the lowest validation loss; targets are not used."""
    first, second = (run.model(start) for start in METHODS[name].starts_from)
    ends: dict[float, Proba] = {0.0: first.probabilities(), 1.0: second.probabilities()}
    start, stop = (fold_norms(model.state(), assembly.whole) for model in (first, second))

    def proba_at(alpha: float, rows: NDArray[np.intp]) -> Proba:
        assembly.load(interpolate(start, stop, alpha))
        return ends[alpha][rows] if alpha in ends else run.predict(name, assembly, rows)

    rows = run.rows(VALIDATION)
    label = run.samples.label[rows]
    losses: list[Any] = [score("log_loss", label, proba_at(alpha, rows)) for alpha in ALPHAS]
    alpha = ALPHAS[int(np.argmin(losses))]
    record = second.record()
    if record is None:
        raise AssertionError(f"{second.path} was trained before")
    line = {"from": BASELINE, "to": record.method, "alpha": alpha}
    proba = proba_at(alpha, np.arange(len(run.samples)))
    return replace(record, method=name, interpolated=line), proba


def fold_norms(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The same function, with the statistics of every BatchNorm folded into scale and shift."""
    folded = dict(state)
    for name, module in network.named_modules():
        if isinstance(module, BATCH_NORMS) and module.affine:
            weight, bias = folded[f"{name}.weight"], folded[f"{name}.bias"]
            mean, variance = folded[f"{name}.running_mean"], folded[f"{name}.running_var"]
            scale = weight / (variance + module.eps).sqrt()
            folded[f"{name}.weight"], folded[f"{name}.bias"] = scale, bias - mean * scale
            folded[f"{name}.running_mean"] = torch.zeros_like(mean)
            folded[f"{name}.running_var"] = torch.full_like(variance, 1 - module.eps)
    return folded


def interpolate(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """State at ``alpha``, 0 to 1, between two states; integer counters are the second's."""
    return {
        name: (1 - alpha) * tensor + alpha * second[name]
        if tensor.is_floating_point()
        else second[name]
        for name, tensor in first.items()
    }
