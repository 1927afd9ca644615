"""The head that shift analyses, and the linear head from which the adaptation methods start.

The analysed head is the best of the comparison, unless the user names another. Its probabilities
are those stored by ``headrace heads``, out of fold for its training images, so the numbers agree
with the comparison. Without a comparison the linear head is analysed, and the record says so;
heads of the folds of the source then score the source and the targets.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from pipeline.data.domain import DomainData, mean_and_scale
from pipeline.data.patients import FIT, patient_folds
from pipeline.data.samples import Samples
from pipeline.errors import MissingResultsError, ModelError, ResultsError
from pipeline.evaluation.heads_record import compared_heads, head_of_entry
from pipeline.evaluation.predictions import PROBABILITIES, Predictions, Trained, predictions_in
from pipeline.features.load import FeatureTable
from pipeline.heads.logistic import make_logistic
from pipeline.heads.save import head_folder, load_head
from pipeline.randomness import stream
from pipeline.study import SOURCE
from pipeline.words import counted

#: C of the logistic head on standardised features. It is fixed, so that no row selects it.
INVERSE_PENALTY = 0.01
#: The head that is fitted if no heads were compared.
_LINEAR = "linear"
#: Fewest patients of a class on which the head was tested.
_FEWEST_PATIENTS = 2


@dataclass(frozen=True, kw_only=True)
class SourceModel:
    """A logistic head of the source, with everything that was fitted on the source.

    Attributes:
        data: The source: raw features, labels, and ``proba`` out of fold by patient.
        mean: Mean of the raw features, shape (d,).
        scale: See :func:`mean_and_scale`.
        head: The head, fitted to all standardised rows of the source.
        fold_heads: Those of the folds that ``proba`` of ``data`` is by.
    """

    data: DomainData
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    head: LogisticRegression
    fold_heads: tuple[LogisticRegression, ...]

    @property
    def classes(self) -> int:
        """Number of classes, K."""
        return int(self.data.get_proba().shape[1])

    @cached_property
    def prior(self) -> NDArray[np.float64]:
        """Share of each class in the source, shape (K,)."""
        label = self.data.get_label()
        return np.asarray(np.bincount(label, minlength=self.classes) / len(label))

    @cached_property
    def standard(self) -> NDArray[np.float32]:
        """The source's own rows, standardised, shape (n, d): for fits of many heads."""
        return self.standardise(self.data.get_features()).astype(np.float32)

    def standardise(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Scale raw features (m, d) by the source's mean and standard deviation."""
        return np.asarray((features - self.mean) / self.scale, dtype=np.float64)

    def predict_proba(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Class probabilities, shape (m, K), of raw features (m, d) of any domain."""
        proba: NDArray[np.float64] = self.head.predict_proba(self.standardise(features))
        return proba

    def apply(self, data: DomainData) -> DomainData:
        """A domain with this head's probabilities."""
        return data.with_(proba=self.predict_proba(data.get_features()))

    def cross_fit(self, data: DomainData) -> DomainData:
        """A target with probabilities by the heads of the folds, each patient by one of them.

        Like those of ``self.data``, they are by heads that were fitted to a part of the source.
        The head of the whole source is surer, so its probabilities differ without any shift.
        """
        names, member = np.unique(data.group, return_inverse=True)
        order = stream("folds of a target").permutation(names.size)
        rows = self.standardise(data.get_features())
        by_fold = np.stack([head.predict_proba(rows) for head in self.fold_heads])
        return data.with_(proba=by_fold[order[member] % len(by_fold), np.arange(len(data))])

    def fit(self, rows: NDArray[np.floating], label: NDArray[np.integer]) -> LogisticRegression:
        """A head of the same penalty on rows (m, e) of about unit variance.

        It is in float32, which takes a third of the time.
        """
        return make_logistic(INVERSE_PENALTY).fit(rows.astype(np.float32), label)


def fit_source(data: DomainData) -> SourceModel:
    """Fit the head to a labelled domain, and once for each fold of its patients.

    Args:
        data: Features and labels; every class from 0 to K - 1 is there.

    Raises:
        StudyError: A class has too few patients for folds.
    """
    features, label = data.get_features(), data.get_label()
    mean, scale = mean_and_scale(features)
    rows = (features - mean) / scale
    proba, fold_heads = np.zeros((len(label), label.max() + 1)), []
    for fit, held in patient_folds(label, data.group, seed=0):
        head = make_logistic(INVERSE_PENALTY, tol=1e-6).fit(rows[fit], label[fit])
        proba[held] = head.predict_proba(rows[held])
        fold_heads.append(head)
    return SourceModel(
        data=data.with_(proba=proba),
        mean=mean,
        scale=scale,
        head=make_logistic(INVERSE_PENALTY, tol=1e-6).fit(rows, label),
        fold_heads=tuple(fold_heads),
    )


@dataclass(frozen=True, kw_only=True)
class AnalysedHead:
    """A head with its probabilities of all images of a study.

    Attributes:
        trained: Its name, and the seed that its probabilities are stored under.
        about: A sentence for users: which head it is, and why.
        proba: Probabilities of all images of the study, ``(N, K)``; NaN for training images that
            were never held out.
        source: The images of the source that are not NaN, with these probabilities.
        training: Its training images, with its probabilities for them.
        model: A linear head of the whole source, from which the adaptation methods start.
    """

    trained: Trained
    about: str
    proba: NDArray[np.float64]
    source: DomainData
    training: DomainData
    model: SourceModel

    def apply(self, target: DomainData) -> DomainData:
        """A target of the study with this head's probabilities."""
        return target.with_(proba=self.proba[target.row])


def analysed_head(
    results: Path, table: FeatureTable, model: SourceModel, wanted: str | None
) -> AnalysedHead:
    """The head that the user named, else the best of the comparison, else the linear one.

    Args:
        results: Folder of the study's results.
        table: Features of all its images on one backbone.
        model: A linear head of the source.
        wanted: Name of a compared head; None: the best one on validation.

    Raises:
        MissingResultsError: The named head cannot be taken from the comparison.
    """
    try:
        return _compared_head(results, table, model, wanted)
    except (MissingResultsError, ModelError, ResultsError) as cause:
        if wanted not in (None, _LINEAR):
            raise MissingResultsError(f"the head {wanted} cannot be analysed: {cause}") from cause
        proba = np.zeros((len(table.X), model.classes))
        for name in np.unique(table.samples.domain):
            # The head of the whole source is surer than those out of fold, without any shift.
            data = model.data if name == SOURCE else model.cross_fit(table.domain(name))
            proba[data.row] = data.get_proba()
        return AnalysedHead(
            trained=(_LINEAR, 0),
            about=(
                f"On {table.backbone} the head is a linear one, fitted for this analysis, because "
                f"{cause}."
            ),
            proba=proba,
            source=model.data,
            training=model.apply(model.data),
            model=model,
        )


def _compared_head(
    results: Path, table: FeatureTable, model: SourceModel, wanted: str | None
) -> AnalysedHead:
    """The head from the comparison; refuses a comparison on other images or features."""
    compared = compared_heads(results)
    again = f"run headrace {compared.stage} STUDY again"
    entries = {entry["backbone"]: entry for entry in compared.record["backbones"]}
    if table.backbone not in entries:
        raise MissingResultsError(f"no heads were compared on {table.backbone}; {again}")
    entry = entries[table.backbone]
    names = [head["head"] for head in entry["heads"]]
    name = wanted or head_of_entry(entry)
    if name not in names:
        raise MissingResultsError(
            f"{name} is not among the heads compared on {table.backbone}: {', '.join(names)}"
        )
    stored = predictions_in(compared.read(PROBABILITIES))[table.backbone]
    saved = load_head(head_folder(results, table.backbone, name))
    rows, recipes = _stored_rows(stored, table.samples), [n.recipe for n in saved.networks]
    if not rows or recipes != [store.recipe for store in table.stores]:
        raise MissingResultsError(f"heads were compared on other images or features; {again}")
    trained = name, saved.seeds[0]
    proba = stored.proba[trained][rows]
    source = model.data
    tested = source.take(np.flatnonzero(np.isfinite(proba[source.row]).all(axis=1)))
    if min(tested.class_patients(model.classes)) < _FEWEST_PATIENTS:
        raise MissingResultsError(
            f"{name} was tested on too few patients of the source; run headrace "
            f"{compared.stage} STUDY without --quick"
        )
    why = "as asked for" if wanted else f"the best of {len(names)} on validation"
    if not wanted and not entry["best"]:
        why = f"the first of {len(names)}, as there is no validation to choose by"
    about = f"On {table.backbone} the head is {name}, {why}."
    if len(tested) < len(source):
        about += f" The source is the {counted(len(tested), 'image')} that it was tested on."
    training = source.take(table.samples.split[source.row] == FIT)
    return AnalysedHead(
        trained=trained,
        about=about,
        proba=proba,
        source=tested.with_(proba=proba[tested.row]),
        training=training.with_(
            proba=saved.predict_proba(np.asarray(training.get_features(), np.float32))
        ),
        model=model,
    )


def _stored_rows(stored: Predictions, samples: Samples) -> list[int]:
    """The stored row of each image, in order; empty if a label or role differs.

    The source must be the same; images of targets may have been removed.
    """
    parts = [
        list(zip(map(bytes, part.key), part.label, part.domain, part.split, strict=True))
        for part in (stored, samples)
    ]
    left = enumerate(parts[0])
    rows = [next((row for row, image in left if image == wanted), -1) for wanted in parts[1]]
    same_source = (stored.domain == SOURCE).sum() == (samples.domain == SOURCE).sum()
    return rows if same_source and -1 not in rows else []
