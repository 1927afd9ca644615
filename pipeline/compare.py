"""Stage 2: train heads on the stored features of the source and compare them everywhere.

Everything that is fitted (the scaler, the heads) sees the fit split of the source
only; validation and targets are looked at, never learned from.
"""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from cache import disk
from pipeline.heads import HEADS, make_head
from pipeline.joined import JoinedFeatures, load_joined
from pipeline.metrics import METRICS
from pipeline.samples import SampleOptions, Samples
from pipeline.splits import FIT, TARGET
from pipeline.study import Study

_LOG = logging.getLogger(__name__)
HEADS_REPORT = "heads.json"
PROBABILITIES = "probabilities.h5"
_FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number: how one head does by one metric on one domain.

    Attributes:
        role: ``fit``, ``validation`` or ``target``.
        seconds: Time to fit the head.
    """

    backbone: str
    head: str
    seed: int
    domain: str
    role: str
    metric: str
    value: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A head that could not be fitted, and why."""

    backbone: str
    head: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class CompareReport:
    """All numbers of one comparison, tidy.

    Attributes:
        classes: In label order; with two classes the second is the positive one.
    """

    study: str
    classes: tuple[str, ...]
    rows: tuple[Row, ...]
    failures: tuple[Failure, ...]


@dataclass(frozen=True, kw_only=True)
class _Fitted:
    """One head on one backbone, with its probabilities ``(n, K)`` for all samples."""

    head: str
    seed: int
    seconds: float
    proba: NDArray[np.float64]


def compare(
    study: Study, *, heads: Sequence[str] | None = None, options: SampleOptions | None = None
) -> CompareReport:
    """Fit heads on every backbone of a study and score them on every domain.

    Args:
        study: Whose features are already stored.
        heads: Names from ``HEADS``; None takes all.
        options: How the samples are gathered.

    Returns:
        The report; also written to ``results/<study>/heads.json``, and the probability
        of each class for each image to ``probabilities.h5`` beside it.

    Raises:
        UnknownNameError: A head is in no table.
        MissingFeaturesError: Stage 1 has not been run.
    """
    names = tuple(HEADS) if heads is None else tuple(heads)
    for name in names:
        make_head(name, seed=study.seed)  # an unknown name must show before any work
    rows: list[Row] = []
    failures: list[Failure] = []
    fitted: dict[str, tuple[Samples, list[_Fitted]]] = {}
    for choice in study.backbones:
        joined = load_joined(study, choice, options)
        done = []
        for name in names:
            try:
                done.append(_fit(joined, name, study.seed))
            except (ValueError, np.linalg.LinAlgError) as cause:
                _LOG.warning("%s on %s failed: %s", name, choice.name, cause)
                failures.append(Failure(backbone=choice.name, head=name, reason=str(cause)))
        fitted[choice.name] = (joined.samples, done)
        rows += [row for one in done for row in _rows(joined, one)]
    report = CompareReport(
        study=study.name, classes=joined.samples.classes, rows=tuple(rows), failures=tuple(failures)
    )
    _write(study, report, fitted)
    return report


def _fit(joined: JoinedFeatures, name: str, seed: int) -> _Fitted:
    fit = joined.samples.where(joined.samples.split == FIT)
    X = joined.X[joined.samples.split == FIT]
    start = time.perf_counter()
    head = _selected(name, seed, X, fit).fit(X, fit.label)
    seconds = time.perf_counter() - start
    return _Fitted(head=name, seed=seed, seconds=seconds, proba=head.predict_proba(joined.X))


def _selected(name: str, seed: int, X: NDArray[np.float32], fit: Samples) -> Any:
    """Scaler and head; its parameters are chosen by folds of patients of the fit split."""
    steps = Pipeline([("scale", StandardScaler()), ("head", make_head(name, seed=seed))])
    if not HEADS[name].grid:
        return steps
    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed)
    return GridSearchCV(
        steps,
        {f"head__{parameter}": list(values) for parameter, values in HEADS[name].grid.items()},
        cv=list(folds.split(X, fit.label, fit.group)),
        scoring="neg_log_loss",
    )


def _rows(joined: JoinedFeatures, fitted: _Fitted) -> Iterator[Row]:
    samples = joined.samples
    for domain, split in dict.fromkeys(zip(samples.domain, samples.split, strict=True)):
        here = (samples.domain == domain) & (samples.split == split)
        for metric, score in METRICS.items():
            value = score(samples.label[here], fitted.proba[here])
            if value is None:
                continue
            yield Row(
                backbone=joined.backbone,
                head=fitted.head,
                seed=fitted.seed,
                domain=str(domain),
                role=str(split) if split != TARGET else TARGET,
                metric=metric,
                value=float(value),
                seconds=round(fitted.seconds, 4),
            )


def _write(
    study: Study, report: CompareReport, fitted: dict[str, tuple[Samples, list[_Fitted]]]
) -> None:
    disk.make_dir(study.results)
    disk.publish(study.results / HEADS_REPORT, json.dumps(asdict(report), indent=1).encode())
    with h5py.File.in_memory(libver=("earliest", "v108")) as file:
        for backbone, (samples, done) in fitted.items():
            _write_probabilities(file.create_group(backbone), samples, done)
        file.flush()
        disk.publish(study.results / PROBABILITIES, file.id.get_file_image())


def _write_probabilities(group: Any, samples: Samples, done: list[_Fitted]) -> None:
    """Rows of every dataset of a backbone's group describe the same image."""
    group.attrs["classes"] = list(samples.classes)
    group["key"] = np.frombuffer(b"".join(samples.key), np.uint8).reshape(len(samples), -1)
    group["label"] = samples.label
    for name, values in (("domain", samples.domain), ("split", samples.split)):
        group.create_dataset(name, data=[str(v) for v in values], dtype=h5py.string_dtype())
    for one in done:
        group[f"heads/{one.head}/{one.seed}"] = one.proba.astype(np.float32)
