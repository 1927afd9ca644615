"""Stage 4: take the gap between the source and each target apart, from the store.

How far the domains are apart (tests with controls), how well the hospital can be told
from the features, what the scores foretell without labels, which fixes that never see a
target label mend the loss, and then, with labels, what the loss is made of and what may
be said of it. Nothing here reads an image.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from cache import disk
from pipeline.data.samples import SampleOptions, load_samples
from pipeline.errors import StudyError
from pipeline.evaluation.predictions import Predictions, write_predictions
from pipeline.features.load import FeatureTable, load_features
from pipeline.heads.parallel import side_by_side
from pipeline.shift.detect import FEWEST_DRAWS
from pipeline.shift.domains import NotCompared, not_compared
from pipeline.shift.figure_data import head_predictions
from pipeline.shift.fine_tuned import trained_losses
from pipeline.shift.known import Checked, check, known_of, source_of
from pipeline.shift.record import ShiftReport, to_json
from pipeline.shift.target import TargetReport, examine
from pipeline.shift.unlabelled import Basis, UnlabelledReport, look
from pipeline.study import Study
from pipeline.words import to_jsonable

SHIFT_REPORT = "shift.json"
SHIFT_PROBABILITIES = "shift.h5"


@dataclass(frozen=True, kw_only=True)
class ShiftOptions:
    """How stage 4 runs.

    Attributes:
        draws: Permutations of each test, 19 at least: of fewer none gives p <= 0.05.
        seeds: Divisions of the target into halves for the adaptation methods, 1 at least.
        samples: See :class:`pipeline.data.samples.SampleOptions`.
    """

    draws: int = 999
    seeds: int = 10
    samples: SampleOptions = field(default_factory=SampleOptions)

    def __post_init__(self) -> None:
        """Refuse numbers of draws and cuts with which nothing can be said.

        Raises:
            StudyError: There are too few.
        """
        for name, least, why in (
            ("draws", FEWEST_DRAWS, "of fewer no test could reject"),
            ("seeds", 1, "a method adapts to one half of the target and is scored on the other"),
        ):
            if (got := getattr(self, name)) < least:
                raise StudyError(f"{name} = {got}: ask for {least} or more; {why}")


def analyse(study: Study, options: ShiftOptions | None = None) -> ShiftReport:
    """Compare the source with each target on every backbone.

    Returns:
        The report; also written to ``results/<study>/``: ``shift.json`` (see
        :mod:`pipeline.shift.record`), and the probabilities of the head that it is about in
        ``shift.h5``.

    Raises:
        StudyError: The study has no target that could be compared, or the source has too
            few patients.
        MissingFeaturesError: Stage 1 has not been run.
        CheckFailedError: A patient or a picture is in two roles.
    """
    options = options or ShiftOptions()
    if not study.targets:
        raise StudyError("the study has no [target.NAME]: there is no shift to look at")
    disk.check_writable(study.results)
    found: list[TargetReport] = []
    blind: list[UnlabelledReport] = []
    left: list[NotCompared] = []
    kept, checked = {}, None
    samples, _ = load_samples(study, options.samples)
    for choice in study.variants:
        joined = load_features(study, choice, samples)
        if checked is None or checked.keys != joined.samples.key:
            checked = check(study, joined.samples, allow_leaks=options.samples.allow_leaks)
        lacking = {t.name: not_compared(joined, t.name) for t in study.targets}
        left += filter(None, lacking.values())
        others = tuple(t for t in study.targets if lacking[t.name] is None)
        if others:
            seen = _look(replace(study, targets=others), joined, checked, options)
            found += seen.targets
            blind += seen.unlabelled
            kept[choice.name] = seen.predictions
    if not kept:
        reasons = dict.fromkeys(f"{one.target}: {one.reason}" for one in left)
        raise StudyError(" ".join(["no target can be compared.", *reasons]))
    labelled = list(dict.fromkeys(one.target for one in found))
    report = ShiftReport(
        study=study.name,
        classes=joined.samples.classes,
        targets=tuple(found),
        trained=trained_losses(study.results, joined.samples, labelled, study.seed),
        unlabelled=tuple(blind),
        not_compared=tuple(left),
    )
    _write(study.results, report, kept)
    return report


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What one backbone shows of all targets, and its head's probabilities."""

    targets: list[TargetReport]
    unlabelled: list[UnlabelledReport]
    predictions: Predictions


def _look(study: Study, joined: FeatureTable, checked: Checked, options: ShiftOptions) -> _Seen:
    labelled = [t.name for t in study.targets if t.labelled]
    unlabelled = [t.name for t in study.targets if not t.labelled]
    source = source_of(joined)
    targets: list[TargetReport] = []
    if labelled:
        known = known_of(study, joined, source, checked, seeds=options.seeds)
        targets = side_by_side(
            [partial(examine, joined, known, name, options.draws, study.seed) for name in labelled]
        )
    basis = Basis(source=source, draws=options.draws, seed=study.seed, leak=checked.leak)
    return _Seen(
        targets=targets,
        unlabelled=side_by_side([partial(look, joined, basis, name) for name in unlabelled]),
        predictions=head_predictions(joined, source),
    )


def _write(results: Path, report: ShiftReport, kept: Mapping[str, Predictions]) -> None:
    disk.make_dir(results)
    write_predictions(results / SHIFT_PROBABILITIES, kept)
    record = to_jsonable(to_json(report))
    text = json.dumps(record, indent=1, allow_nan=False)
    disk.publish(results / SHIFT_REPORT, text.encode())
