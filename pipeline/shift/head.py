"""Which head a shift is analysed of: the best of the comparison, unless another is asked for.

Its probabilities are those that ``headrace heads`` has stored, of the images that it was fitted
to out of fold: the numbers of a shift are those of the comparison. Where there is none, a linear
head is fitted, and the record says so.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.data.domain import DomainData
from pipeline.data.patients import FIT
from pipeline.data.samples import Samples
from pipeline.errors import MissingResultsError, ModelError, ResultsError
from pipeline.evaluation.compare_heads import compared_heads, head_of_entry
from pipeline.evaluation.predictions import PROBABILITIES, Predictions, Trained, predictions_in
from pipeline.features.load import FeatureTable
from pipeline.heads.save import head_folder, load_head
from pipeline.results import ResultSet
from pipeline.shift.domains import SourceModel
from pipeline.study import SOURCE, Study
from pipeline.words import counted

#: The head that is fitted where none was compared.
_LINEAR = "linear"
#: Patients of a class that the head was tested on, at least.
_FEWEST_PATIENTS = 2


@dataclass(frozen=True, kw_only=True)
class AnalysedHead:
    """A head with its probabilities of all images of a study.

    Attributes:
        trained: Its name, and the seed that its probabilities are stored under.
        about: A sentence for people: which head it is, and why this one.
        proba: Of all images of the study, ``(N, K)``; NaN where it was fitted to an image that
            was never held out.
        source: The images of the source that are not NaN, with these probabilities.
        training: The images that it was fitted to, with its probabilities of them.
        linear: A linear head of the whole source, which the adaptation methods start from.
    """

    trained: Trained
    about: str
    proba: NDArray[np.float64]
    source: DomainData
    training: DomainData
    linear: SourceModel

    @property
    def name(self) -> str:
        """Of the head."""
        return self.trained[0]

    def scored(self, target: DomainData) -> DomainData:
        """A target of the study with this head's probabilities."""
        return target.with_(proba=self.proba[target.row])


def analysed_head(
    study: Study, table: FeatureTable, linear: SourceModel, wanted: str | None
) -> AnalysedHead:
    """The head that was asked for, else the best of the comparison, else the linear one.

    Args:
        study: With its results.
        table: Features of all its images on one backbone.
        linear: A head of the source.
        wanted: Name of a compared head; None: the best one on validation.

    Raises:
        MissingResultsError: A head is asked for, and cannot be taken from the comparison.
    """
    try:
        compared = compared_heads(study.results)
        return _compared(study, table, linear, compared, wanted)
    except (MissingResultsError, ModelError, ResultsError) as cause:
        if wanted not in (None, _LINEAR):
            raise MissingResultsError(f"the head {wanted} cannot be analysed: {cause}") from cause
        return AnalysedHead(
            trained=(_LINEAR, 0),
            about=(
                f"On {table.backbone} the head is a linear one, fitted for this analysis, because "
                f"{cause}."
            ),
            proba=linear.predict_all(table.X),
            source=linear.data,
            training=linear.scored(linear.data),
            linear=linear,
        )


def _compared(
    study: Study,
    table: FeatureTable,
    linear: SourceModel,
    compared: ResultSet,
    wanted: str | None,
) -> AnalysedHead:
    """See :func:`analysed_head`; refuses a comparison of other images or features."""
    again = f"run headrace {compared.stage} STUDY again"
    entries = [e for e in compared.record["backbones"] if e["backbone"] == table.backbone]
    if not entries:
        raise MissingResultsError(f"no heads were compared on {table.backbone}; {again}")
    names = [head["head"] for head in entries[0]["heads"]]
    name = wanted or head_of_entry(entries[0])
    if name not in names:
        raise MissingResultsError(
            f"{name} is not among the heads compared on {table.backbone}: {', '.join(names)}"
        )
    stored = predictions_in(compared.read(PROBABILITIES))[table.backbone]
    head = load_head(head_folder(study.results, table.backbone, name))
    recipes, rows = [network.recipe for network in head.networks], _rows(stored, table.samples)
    if not rows or recipes != [store.recipe for store in table.stores]:
        raise MissingResultsError(f"heads were compared on other images or features; {again}")
    trained = name, head.seeds[0]
    source, fit = table.domain(SOURCE), table.domain(SOURCE, FIT)
    proba = stored.proba[trained][rows]
    held_out = np.asarray(np.isfinite(proba).all(axis=1))
    tested = source.take(held_out[source.row])
    for k in range(len(stored.classes)):
        if np.unique(tested.group[tested.label == k]).size < _FEWEST_PATIENTS:
            raise MissingResultsError(
                f"{name} was tested on too few patients of the source; run headrace "
                f"{compared.stage} STUDY without --quick"
            )
    why = "as asked for" if wanted else f"the best of {len(names)} on validation"
    if not wanted and not entries[0]["best"]:
        why = f"the first of {len(names)}, as there is no validation to choose by"
    about = f"On {table.backbone} the head is {name}, {why}."
    if len(tested) < len(source):
        about += f" The source is the {counted(len(tested), 'image')} that it was tested on."
    return AnalysedHead(
        trained=trained,
        about=about,
        proba=proba,
        source=tested.with_(proba=proba[tested.row]),
        training=fit.with_(proba=head.predict_proba(np.asarray(fit.embedded(), np.float32))),
        linear=linear,
    )


def _rows(stored: Predictions, samples: Samples) -> list[int]:
    """Where each image is stored, in the same order; none where a label or role is another.

    The source must be the same; images of targets may be gone.
    """
    parts = [
        list(zip(map(bytes, part.key), part.label, part.domain, part.split, strict=True))
        for part in (stored, samples)
    ]
    left = enumerate(parts[0])
    rows = [next((row for row, image in left if image == wanted), -1) for wanted in parts[1]]
    same_source = (stored.domain == SOURCE).sum() == (samples.domain == SOURCE).sum()
    return rows if same_source and -1 not in rows else []
