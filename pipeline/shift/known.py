"""What is known before any target is looked at: the checks, and the source alone.

All of it serves every target of a backbone, and the checks serve every backbone with the
same images.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.attributes import Grouping, groupings
from pipeline.data.index import known_facts
from pipeline.data.leaks import Finding, check_leaks, refuse_leaks
from pipeline.data.patients import one_patient_hint
from pipeline.data.samples import Samples
from pipeline.errors import StudyError
from pipeline.features.load import FeatureTable
from pipeline.shift.adapt_eval import AdaptationPlan
from pipeline.shift.domains import SourceModel, fit_source, here_of
from pipeline.shift.error_table import Refits, refit
from pipeline.shift.subgroups import Subgroups, Terms, subgroups, terms_of
from pipeline.study import SOURCE, Study
from pipeline.words import counted, printable

#: In a fold and out of it; nothing else needs more, for a draw without a class is drawn anew.
_PATIENTS_OF_A_CLASS = 2
Facts = NDArray[Any]
"""Shape (n,), records of what was measured in each picture."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What the checks say of a set of images."""

    keys: tuple[bytes, ...]
    """Of the ``n`` images."""
    facts: Facts | None
    """None where no audit has measured them all."""
    leak: tuple[Finding, ...]
    """What is in two roles at once."""


def check(study: Study, samples: Samples, *, allow_leaks: bool) -> Checked:
    """Look for images and patients in two roles.

    Args:
        study: Where the facts and the patient patterns are.
        samples: All images.
        allow_leaks: Go on with what is found.

    Raises:
        CheckFailedError: A patient or a picture is in two roles.
    """
    facts = known_facts(study.store_root, samples.key)
    leak = tuple(check_leaks(study, samples, facts))
    if not allow_leaks:
        refuse_leaks(leak)
    return Checked(keys=samples.key, facts=facts, leak=leak)


def source_of(joined: FeatureTable) -> SourceModel:
    """The head and its penalty know the source alone, so they serve every target.

    Raises:
        StudyError: A class has images of too few patients; said before any head is fitted.
    """
    _refuse_few_patients(joined.samples.where(joined.samples.domain == SOURCE))
    return fit_source(joined.domain(SOURCE))


def _refuse_few_patients(source: Samples) -> None:
    for k, name in enumerate(source.classes):
        patients = np.unique(source.group[source.label == k]).size
        if patients < _PATIENTS_OF_A_CLASS:
            raise StudyError(
                f"class {printable(name)!r} of [source] has images of "
                f"{counted(patients, 'patient')}, and {_PATIENTS_OF_A_CLASS} are needed: a head "
                "is tested on patients that it was not fitted to. Add images of others, or leave "
                f"out fewer; {one_patient_hint(SOURCE)}"
            )


@dataclass(frozen=True, kw_only=True)
class Known:
    """What the source alone says, and how the rows of the targets are divided."""

    source: SourceModel
    """The labelled domain, with all of its heads fitted."""
    refits: Refits
    """Its head, fitted to drawn patients."""
    plan: AdaptationPlan
    """Of the adaptation methods on every target."""
    human: float | None
    """Error of a person on the source."""
    groupings: Mapping[str, tuple[Grouping, ...]]
    """By domain, its subgroups."""
    terms: Terms
    """On which subgroups are scored."""
    subgroups: tuple[Subgroups, ...]
    """Of the source."""
    checked: Checked
    """What the checks say."""


def known_of(
    study: Study,
    joined: FeatureTable,
    source: SourceModel,
    checked: Checked,
    *,
    seeds: int,
) -> Known:
    """The head, and what it is when fitted to other patients, serve every labelled target.

    Args:
        study: What is known from elsewhere: human error, attributes.
        joined: All samples with features.
        source: The labelled domain, from :func:`source_of`.
        checked: What the checks say.
        seeds: Divisions of a target into halves for the adaptation methods.

    Raises:
        StudyError: Attributes that do not fit, or a head that the source cannot bear.
    """
    seed = study.seed
    groups = groupings(study, joined.samples)  # first: it may refuse a file of the user's
    plan = AdaptationPlan(seeds=tuple(range(seeds)))
    here = here_of(source)
    refits = refit(source, np.random.default_rng([seed, 13]))
    terms = terms_of(here, joined.samples.classes, seed)
    return Known(
        source=source,
        refits=refits,
        plan=plan,
        human=study.human_error,
        groupings=groups,
        terms=terms,
        subgroups=subgroups(SOURCE, here, groups.get(SOURCE, ()), terms),
        checked=checked,
    )
