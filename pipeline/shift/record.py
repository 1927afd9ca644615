"""``shift.json``: the report of the shift stage as JSON values. This is its schema, version 5.

Rates are in [0, 1], differences in [-1, 1]; an interval is 95 %, by patient; what is not
defined is null. At the top: ``schema``, ``study``, ``classes``, and ``targets``, one entry
for each backbone and target:

- ``shared_patients``: ids that both domains have.
- ``source_prediction``: how well the domain can be told, ``overall`` and ``by_class`` (by
  label in the source, by prediction in the target; null: too few patients): ``auc`` with
  ``low`` and ``high``, ``p`` by relabelling.
- ``detect``: one entry for each test: ``statistic``, permutation ``p`` by patient, ``p_holm``
  (over the tests), ``p_null_control`` (two halves of the source), ``p_positive_control`` (the
  same with a planted shift), ``refused``: why there is no value.
- ``roles``: by name which ``rows`` were ``used_for`` what, whether their ``labels`` were
  read, ``images`` and ``patients``. ``seeds`` by purpose. ``inputs``: digests of the keys
  and labels of ``source`` and ``target``, ``recipes`` (fingerprints of the features),
  ``plan``. ``caveats``: sentences. ``leak``: findings of the checks that run before.
- ``ng``: error by role (``estimate``, ``low``, ``high``, ``n``, ``groups``, ``method``):
  ``s_fit``, ``s_traindev`` (out of fold), ``t_test``, ``t_oracle_cv`` (a head of the target,
  by cross-validation); ``human`` (a number, null unless the study has ``human_error``).
- ``gaps``: the steps between them: ``est``, ``ci_sampling``, ``ci_retrain`` (heads refitted
  to drawn patients of the source and, for ``t_oracle_cv``, of the target), ``p_largest``.
  ``not_identifiable``: step to reason. ``dominant``: a step or null.
- ``differences``: of the hospitals' habits, ``said`` in a sentence; ``rows``, empty where no
  audit has measured the pictures: ``name``, ``effect`` within classes in sd (for the class
  mix, of a share), its simultaneous interval, whether it is ``named``.
- ``calib``: by domain Brier score and log loss with their parts, ``ece``, ``line``; of the
  event ``calib_event``. ``operating_points``: ``rule``, ``domain``, ``way``, ``point``,
  ``reliable`` (false: moved without labels where Y given the score changed).
- ``decomposition``: ``total``, ``kitagawa``, ``score``, ``threshold``.
- ``forecast``: made without target labels: ``accuracy`` by formula, range ``low`` to
  ``high``, ``prevalence``, ``warning``.
- ``fixes``: one entry for each, the k-shot rows with ``uses_target_labels`` true.
- ``subgroups``, only where the study asks for them: one entry for each ``domain`` (``source``,
  out of fold, and ``target``) and ``attribute``; ``threshold`` (Youden's, of the source);
  ``groups``: ``name``, ``images``, ``patients``, ``few`` (why there are no numbers),
  ``prevalence``, ``metrics`` (``estimate`` of ``n`` images, ``low`` and ``high`` of this group
  alone, ``simultaneous`` interval over the groups, ``rest``: difference to all other images
  with its simultaneous interval, ``below`` where that lies below 0), ``missing`` (metric to
  reason); ``worst``: metric to group. ``unknown`` are images without a row or a value.
- ``plan_hash``, ``lookups_of_target_labels``, ``verdict``, ``notes``, ``map``, ``seconds``.

``unlabelled``: one entry for each backbone and target whose labels are absent, with those of
the above that need none (``shared_patients`` to ``notes``, ``forecast``, ``roles`` and what
goes with them); ``images``, ``said`` in sentences, ``source_accuracy`` (out of fold),
``called`` (share of images called each class), ``needs_labels``: what is left out.
``not_compared``: one entry for each backbone and target of one patient: ``images``, ``reason``.
``trained``: one entry for each fine-tuned network and target, by its kept probabilities,
the source being its validation split: accuracies, ``total``, ``kitagawa``, ``threshold``.
"""

from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.separability import DomainAUC, Separability
from pipeline.shift.adapt_eval import AdaptationRow
from pipeline.shift.covariates import said
from pipeline.shift.domains import NotCompared
from pipeline.shift.error_table import RoleReport
from pipeline.shift.fine_tuned import TrainedLoss
from pipeline.shift.label_free import AccuracyEstimate
from pipeline.shift.target import TargetReport
from pipeline.shift.unlabelled import NEEDS_LABELS, UnlabelledReport
from pipeline.shift.unlabelled import said as foretold
from pipeline.words import to_jsonable

SCHEMA = 5


@dataclass(frozen=True, kw_only=True)
class ShiftReport:
    """All targets of a study, those without labels apart, and the networks trained on images.

    Attributes:
        not_compared: Targets that could not be, by backbone; no other entry has them.
    """

    study: str
    classes: tuple[str, ...]
    targets: tuple[TargetReport, ...]
    trained: tuple[TrainedLoss, ...] = ()
    unlabelled: tuple[UnlabelledReport, ...] = ()
    not_compared: tuple[NotCompared, ...] = ()


def to_json(report: ShiftReport) -> dict[str, Any]:
    """The report as JSON values; the schema's version is in it."""
    return {
        "schema": SCHEMA,
        "study": report.study,
        "classes": list(report.classes),
        "targets": [_target_json(t) for t in report.targets],
        "unlabelled": [_unlabelled_json(t) for t in report.unlabelled],
        "not_compared": to_jsonable(report.not_compared),
        "trained": to_jsonable(report.trained),
    }


def _target_json(t: TargetReport) -> dict[str, Any]:
    return {
        **_seen_json(t),
        "fixes": [_adaptation_json(row) for row in (*t.adaptation.rows, *t.adaptation.label_curve)],
        "plan_hash": t.adaptation.plan_hash,
        # Once to score the methods, once to take the loss apart.
        "lookups_of_target_labels": t.adaptation.reads + 1,
        **to_jsonable(t.provenance),
        **_ng_json(t.story.roles),
        "calib": to_jsonable(t.story.soundness.calibration),
        "calib_event": t.story.soundness.event,
        "operating_points": to_jsonable(t.story.soundness.operating),
        "decomposition": to_jsonable(t.story.decomposition),
        "forecast": _estimate_json(t.story.estimate),
        "verdict": to_jsonable(t.story.verdict),
        "map": to_jsonable(t.map),
        "differences": {"said": said(t.differences), "rows": to_jsonable(t.differences or ())},
        **({"subgroups": to_jsonable(t.subgroups)} if t.subgroups else {}),
        "seconds": t.seconds,
    }


def _unlabelled_json(t: UnlabelledReport) -> dict[str, Any]:
    return {
        **_seen_json(t),
        "images": t.images,
        "said": foretold(t),
        "source_accuracy": t.source_accuracy,
        "called": list(t.called),
        "forecast": _estimate_json(t.estimate),
        "needs_labels": list(NEEDS_LABELS),
        **to_jsonable(t.provenance),
        "seconds": t.seconds,
    }


def _seen_json(t: "TargetReport | UnlabelledReport") -> dict[str, Any]:
    """What no label is needed for."""
    return {
        "backbone": t.backbone,
        "target": t.target,
        "shared_patients": t.shared_patients,
        "source_prediction": _auc_json(t.detection.domain_auc),
        "detect": _detect_json(t),
        "notes": list(t.detection.notes),
    }


def _detect_json(t: "TargetReport | UnlabelledReport") -> list[dict[str, Any]]:
    return [
        {
            "name": row.test,
            "primary": True,
            "statistic": row.statistic,
            "p": row.p,
            "p_holm": row.p_adjusted,
            "p_null_control": row.p_control,
            "p_positive_control": row.p_planted,
            "refused": row.refused,
        }
        for row in t.detection.tests
    ]


def _auc_json(found: DomainAUC) -> dict[str, Any]:
    def one(auc: Separability | None) -> dict[str, Any] | None:
        if auc is None:
            return None
        return {"auc": auc.auc.estimate, "low": auc.auc.low, "high": auc.auc.high, "p": auc.p}

    return {"overall": one(found.overall), "by_class": [one(auc) for auc in found.by_class]}


def _estimate_json(found: AccuracyEstimate) -> dict[str, Any]:
    return {
        "accuracy": to_jsonable(found.accuracy),
        "low": found.low,
        "high": found.high,
        "prevalence": {"mlls": to_jsonable(found.prevalence)},
        "warning": found.assumption,
    }


def _ng_json(roles: RoleReport) -> dict[str, Any]:
    """Errors by role under ``ng``, the steps between them under ``gaps``."""
    return {
        "ng": {
            "human": roles.human,
            **to_jsonable(roles.table.errors),
        },
        "gaps": {
            name: {
                "est": gap.estimate,
                "ci_sampling": [gap.low, gap.high],
                "ci_retrain": to_jsonable(roles.ci_retrain.get(name)),
                "p_largest": gap.p_largest,
            }
            for name, gap in roles.table.steps.items()
        },
        "not_identifiable": dict(roles.table.not_identifiable),
        "dominant": roles.dominant,
        "refits": roles.refits,
    }


def _adaptation_json(row: AdaptationRow) -> dict[str, Any]:
    found = row.difference
    values = {"estimate": 0.0, "low": 0.0, "high": 0.0}
    if found is not None:
        values = {name: getattr(found.interval, name) for name in values}
    return {
        "name": row.method,
        "accuracy": row.accuracy,
        "auroc": row.auroc,
        "difference": values,
        "p_holm": 1.0 if found is None else found.p_adjusted,
        "uses_target_labels": row.labels_per_class > 0,
    }
