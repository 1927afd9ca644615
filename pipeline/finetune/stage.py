"""Stage 3: train heads, parts and whole networks on the same images and compare them.

Methods are trained on the fit split. The validation split decides early stopping and the alpha of
WiSE-FT; targets decide nothing. Each model is saved as soon as it is trained. The record covers
all saved models, also those of earlier runs.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from cache import disk
from pipeline.data.domain import DomainData
from pipeline.data.patients import FIT
from pipeline.data.samples import SampleOptions, Samples, load_samples
from pipeline.errors import MissingResultsError, PartialFailureError, record_failure
from pipeline.evaluation.compare_heads import compare_heads, eval_sets, score_heads
from pipeline.evaluation.heads_record import compared_heads
from pipeline.evaluation.metrics import Proba
from pipeline.evaluation.predictions import (
    PROBABILITIES,
    predictions_file,
    predictions_of,
    read_predictions,
    stored_predictions,
)
from pipeline.features.engines import choose_device
from pipeline.features.load import load_features
from pipeline.finetune import distributed as parallel
from pipeline.finetune.data import limit_images
from pipeline.finetune.methods import (
    BASELINE,
    FIRST_BLOCK,
    METHODS,
    TAIL,
    resolve_settings,
    select_methods,
)
from pipeline.finetune.networks import cut_of
from pipeline.finetune.runs import (
    FROM_PIXELS,
    Experiment,
    ModelFolder,
    Record,
    run_method,
    samples_digest,
)
from pipeline.results import write_set
from pipeline.study import Study
from pipeline.words import to_jsonable

_LOG = logging.getLogger(__name__)
SCHEMA = 9
#: Head of stage 2 with the same form as the heads here; the table counts how many fit in a time.
_HEAD = "mlp"
#: Last epochs that :func:`trend` uses; relative change per epoch that still counts as flat.
_LAST_EPOCHS, _FLAT_CHANGE = 5, 0.01
#: A saved model with its probabilities for all samples, shape ``(n, K)``.
_Model = tuple[Record, Proba]


def finetune(
    study: Study,
    *,
    methods: Sequence[str] = (),
    settings: Mapping[str, Any] = MappingProxyType({}),
    image_size: int | None = None,
    limit: int | None = None,
    device: str = "auto",
    options: SampleOptions | None = None,
) -> dict[str, Any]:
    """Train methods on every backbone of a study, and compare all saved models.

    Args:
        study: The study with images and stores.
        methods: Entries of ``METHODS``, or ``all``; empty takes ``QUICK``.
        settings: The user's values of ``TrainingSettings``, by name; None means not given.
            Epochs and learning rate are for the named methods, other settings for all.
        image_size: Side of the images, pixels; None takes the backbone's.
        limit: Images of each split of each domain, at most; None takes all.
        device: ``auto``, ``cpu`` or ``cuda``.
        options: Which samples are accepted.

    Returns:
        The record, JSON types only, also in ``results/<study>/finetune.json``; the probability
        of each class for each image is in ``finetune.h5`` beside it. ``trial`` names the limits
        of a trial and is part of the names of its results. ``backbones``: for each one its
        ``models`` (costs and learning curves) and its ``domains`` without the fit split, with a
        row for each model: ``scores``, an interval for each metric, and ``differences`` of
        accuracy from ``lp`` and from the best head of stage 2, on the same images. Networks from
        scratch are listed with the first backbone. ``unlabelled``: images of each target without
        labels; ``failed_targets`` and ``failures``: reasons.

    Raises:
        UnknownNameError: A method is in no table.
        StudyError: A method trains a part of a backbone that has no cut.
        MissingFeaturesError: Stage 1 has not been run.
        PartialFailureError: A method, a backbone or a target failed; the record is of the others.
        PipelineError: See the modules this calls.
    """
    names, named = select_methods(methods)
    trial = (f"-limit{limit}" if limit else "") + (f"-{image_size}px" if image_size else "")
    folder = study.results / f"finetune{trial}"
    _check(study, names, settings)
    disk.prepare(study.results)
    with parallel.process_group(choose_device(device), study.name) as process_device:
        samples, _ = load_samples(study, options)
        tables: dict[str, Samples] = {}
        failures: dict[str, Exception] = {}
        # Of several processes all stop at once, or the others would wait for one.
        alone = parallel.group().size > 1
        for choice in {b.network: b for b in study.backbones}.values():
            part = f"backbone.{choice.name}"
            with record_failure(part, failures, alone=alone):
                samples = load_features(study, choice, samples).samples
            if part in failures:
                continue
            run = Experiment(
                study=study,
                choice=choice.network,
                samples=limit_images(samples, limit, study.seed),
                folder=folder,
                device=process_device,
                image_size=image_size,
                given=settings,
                named=named,
            )
            for name in names:
                if METHODS[name].pretrained or not tables:
                    _LOG.info("%s on %s", name, run.backbone(name))
                    with record_failure(f"{name} on {run.backbone(name)}", failures, alone=alone):
                        run_method(run, name)
            tables[run.choice.name] = run.samples
        if tables:
            tables[FROM_PIXELS] = next(iter(tables.values()))
        models = _saved_models(folder, tables)
        if failures and not models:
            raise next(iter(failures.values()))
        record = {**_evaluate(study, tables, models), "trial": trial}
        record["failures"] = {part: str(reason) for part, reason in failures.items()}
        is_first = parallel.group().rank == 0
        if is_first:
            _write(folder, record, tables, models)
    failures = {f"target.{name}": why for name, why in samples.failures.items()} | failures
    # An error in another process would let torchrun end the first before it has written all.
    if failures and is_first:
        raise PartialFailureError(failures, record)
    return record


def _check(study: Study, names: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Check everything that can fail before the first method has trained for an hour."""
    if any(METHODS[name].trainable in (TAIL, FIRST_BLOCK) for name in names):
        for choice in study.backbones:
            cut_of(choice.network.name)
    for name in METHODS:  # also where no method uses a setting
        resolve_settings(name, settings)
    with suppress(MissingResultsError):
        stored_predictions(study.results / PROBABILITIES)


def _saved_models(folder: Path, tables: Mapping[str, Samples]) -> list[_Model]:
    """Every saved model of these images, in the order of the table."""
    models = []
    digests = {backbone: samples_digest(samples) for backbone, samples in tables.items()}
    for name in disk.listdir(folder):
        model = ModelFolder(folder / name)
        record = model.record()
        if record is None or record.method not in METHODS or record.backbone not in tables:
            continue
        if digests[record.backbone] == record.samples:
            models.append((record, model.probabilities()))
        else:
            _LOG.warning(
                "%s: the study's images have changed since, so it is not in the comparison; "
                "run --method %s again",
                *(name, record.method),
            )
    order = [*tables, *METHODS]
    return sorted(
        models, key=lambda m: (*map(order.index, (m[0].backbone, m[0].method)), m[0].seed)
    )


def _write(
    stem: Path, record: Mapping[str, Any], tables: Mapping[str, Samples], models: Sequence[_Model]
) -> None:
    by_backbone: dict[str, dict[tuple[str, int], Proba]] = {}
    for model, proba in models:
        by_backbone.setdefault(model.backbone, {})[model.method, model.seed] = proba
    predictions = {name: predictions_of(tables[name], p) for name, p in by_backbone.items()}
    write_set(
        stem.with_name(f"{stem.name}.json"),
        record,
        {f"{stem.name}.h5": predictions_file(predictions)},
        owned=() if record["trial"] else ("finetune*.csv", "figures/finetune-*"),
    )


# Scores and costs of the saved models.


def _evaluate(
    study: Study, tables: Mapping[str, Samples], models: Sequence[_Model]
) -> dict[str, Any]:
    entries, first, heads = [], next(iter(tables)), {}
    with suppress(MissingResultsError):
        compared = compared_heads(study.results).record["backbones"]
        heads = {entry["backbone"]: entry for entry in compared}
    for backbone, samples in tables.items():
        names = (backbone, FROM_PIXELS) if backbone == first else (backbone,)
        chosen = [model for model in models if model[0].backbone in names]
        if not chosen or backbone == FROM_PIXELS:
            continue
        of_backbone = heads.get(backbone, {})
        best = _best_head(study.results, backbone, of_backbone.get("best"), samples)
        evaluated = eval_sets(samples)
        entries.append(
            {
                "backbone": backbone,
                "models": [_model_row(model, of_backbone) for model, _ in chosen],
                "domains": [_domain(data, chosen, best, study.seed) for data in evaluated],
                # None of them can be compared with a network that saw other images.
                "heads_fitted_to_others": best is None,
            }
        )
    return {
        "schema": SCHEMA,
        "study": study.name,
        "classes": list(tables[first].classes),
        "backbones": entries,
        "unlabelled": tables[first].unlabelled,
        "failed_targets": tables[first].reasons,
    }


def _model_row(record: Record, heads: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a model without its identity, with values derived from it.

    Interpolation trains nothing, so its seconds are those of the second model. The number of
    heads in the same time is for perceptrons of stage 2, if it has run.
    """
    method, values = METHODS[record.method], asdict(record)
    del values["identity"], values["samples"]
    seconds = sum(row["seconds"] for row in record.curves)
    curves = record.curves if method.trains else []
    images = sum(row["seconds"] * row["images_per_second"] for row in curves)
    each = [row["fit_seconds"] for row in heads.get("heads", ()) if row["head"] == _HEAD]
    is_beside = record.method != BASELINE and record.backbone != FROM_PIXELS and sum(each)
    return {
        **values,
        "trainable": method.trainable,
        "epochs": len(curves) if method.trains else None,
        "seconds": seconds,
        "images_per_second": images / seconds if method.trains else None,
        "trend": trend([row["validation_loss"] for row in curves]),
        "heads_in_the_same_time": int(seconds / np.mean(each)) if is_beside else None,
        "curves": curves,
    }


def trend(validation_loss: Sequence[float]) -> str | None:
    """The trend of the validation loss: a line through its last five epochs (least squares).

    A falling loss has not converged. The learning rate falls to 0 at the end, so a flat loss does
    not show that longer training would gain nothing.

    Args:
        validation_loss: Loss of all epochs, nats, in order.

    Returns:
        ``flat`` if neither the slope nor its standard error is above 1 % of the mean loss;
        ``falling`` or ``rising`` (overfitting) if the slope is above that and above twice its
        error; else ``noisy``. None with fewer epochs.
    """
    last = validation_loss[-_LAST_EPOCHS:]
    if len(last) < _LAST_EPOCHS:
        return None
    (slope, _), covariance = np.polyfit(range(_LAST_EPOCHS), last, 1, cov=True)
    error, flat_limit = np.sqrt(covariance[0, 0]), _FLAT_CHANGE * np.mean(last)
    if max(abs(slope), error) <= flat_limit:
        return "flat"
    if abs(slope) > max(flat_limit, 2 * error):
        return "falling" if slope < 0 else "rising"
    return "noisy"


def _domain(
    data: DomainData, models: Sequence[_Model], best: Mapping[str, Proba] | None, seed: int
) -> dict[str, Any]:
    """A row for each model: scores with intervals, and differences from the baselines."""
    proba = {(model.method, model.seed): values[data.row] for model, values in models}
    scores = score_heads(data, proba, seed=seed)
    differences: dict[tuple[str, int], dict[str, Any]] = {at: {} for at in proba}
    for number in dict.fromkeys(number for _, number in proba):
        same_seed = {method: p for (method, n), p in proba.items() if n == number}
        baselines = {name: p for name, p in same_seed.items() if name == BASELINE}
        baselines |= {name: p[data.row] for name, p in (best or {}).items()}
        for name, base in baselines.items():
            compared = compare_heads(data, {**same_seed, name: base}, name, seed=seed)
            for method, difference in compared["accuracy"].items():
                differences[method, number][name] = difference.record()
    rows = [
        {
            "method": method,
            "seed": number,
            "scores": to_jsonable(scores[method, number]),
            "differences": differences[method, number],
        }
        for method, number in proba
    ]
    classes = models[0][1].shape[1]
    return {**data.record(classes), "rows": rows}


def _best_head(
    results: Path, backbone: str, name: str | None, samples: Samples
) -> dict[str, Proba] | None:
    """Probabilities of stage 2's best head on validation for these samples, by its name.

    Empty if stage 2 has not run on all of these images. None if its heads were fitted to other
    images: a network that saw 40 images should not be compared with a head that saw 400.
    """
    try:
        stored = read_predictions(results / PROBABILITIES)[backbone]
    except (MissingResultsError, KeyError):
        return {}
    row_of = {key.tobytes(): row for row, key in enumerate(stored.key)}
    fit = {key for key, split in zip(samples.key, samples.split, strict=True) if split == FIT}
    if {key.tobytes() for key in stored.key[stored.split == FIT]} != fit:  # a leak is in two splits
        return None
    if name is None or not all(key in row_of for key in samples.key):
        return {}
    (proba,) = (p for (head, _), p in stored.proba.items() if head == name)
    return {f"heads/{name}": proba[[row_of[key] for key in samples.key]]}
