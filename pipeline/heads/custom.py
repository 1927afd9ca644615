"""Heads that a study adds to the table: scikit-learn classifiers, or ours with other parameters."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from types import MappingProxyType
from typing import Any

from pipeline.errors import StudyError, UnknownNameError
from pipeline.heads import HEADS, HeadSpec
from pipeline.study import CustomHead


def all_heads(custom: tuple[CustomHead, ...]) -> Mapping[str, HeadSpec]:
    """``HEADS`` and the heads of a study.

    Raises:
        StudyError: A head cannot be made from its settings.
    """
    return MappingProxyType({**HEADS, **{head.name: _custom(head) for head in custom}})


def _custom(head: CustomHead) -> HeadSpec:
    where = f"[head.{head.name}]"
    if head.name in HEADS:
        raise StudyError(f"{where}: the name is taken; choose another than {', '.join(HEADS)}")
    if bool(head.estimator) == bool(head.base):
        raise StudyError(f'{where}: write either estimator = "sklearn..." or base = "mlp"')
    return _based(head, where) if head.base else _estimator(head, where)


def _based(head: CustomHead, where: str) -> HeadSpec:
    if head.base not in HEADS:
        raise StudyError(f"{where}: {UnknownNameError('base', head.base, HEADS)}")
    base, given = HEADS[head.base], dict(head.parameters)
    _check(given, base.make(0).get_params(), where)
    return replace(
        base,
        make=lambda seed: base.make(seed).set_params(**given),
        about=f"{head.base} with {given}",
        choices=_without(base.choices, given),
    )


def _without(
    choices: Sequence[Mapping[str, Any]], given: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The remaining choices if some parameters are given."""
    left: list[dict[str, Any]] = []
    for choice in choices:
        free = {k: v for k, v in choice.items() if k not in given}
        left += [free] if free not in left else []
    return left


def _estimator(head: CustomHead, where: str) -> HeadSpec:
    kind, given = _class_of(head.estimator, where), dict(head.parameters)
    allowed = inspect.signature(kind).parameters
    _check(given, allowed, where)
    missing = [p.name for p in allowed.values() if p.default is p.empty and p.name not in given]
    if missing:
        raise StudyError(f"{where}: {head.estimator} needs {', '.join(missing)}")
    if not hasattr(kind(**given), "predict_proba"):
        raise StudyError(f"{where}: {head.estimator} gives no probabilities; choose one that does")
    stochastic = "random_state" in allowed and "random_state" not in given
    return HeadSpec(
        make=lambda seed: kind(**given, **({"random_state": seed} if stochastic else {})),
        about=f"{head.estimator} with {given}",
        stochastic=stochastic,
        scikit_learn=True,
    )


def _class_of(path: str, where: str) -> Any:
    """A public classifier of scikit-learn; nothing else is imported."""
    from sklearn.base import ClassifierMixin

    module, _, name = path.rpartition(".")
    parts = path.split(".")
    if parts[0] != "sklearn" or len(parts) < 3 or any(not p or p[0] == "_" for p in parts):
        raise StudyError(f"{where} estimator = {path!r}: allowed is sklearn.MODULE.CLASS")
    try:
        kind = getattr(import_module(module), name)
    except (ImportError, AttributeError) as cause:
        raise StudyError(
            f"{where} estimator = {path!r}: scikit-learn has none ({cause})"
        ) from cause
    is_public = inspect.isclass(kind) and kind.__module__.startswith("sklearn.")
    if not is_public or not issubclass(kind, ClassifierMixin):
        raise StudyError(f"{where} estimator = {path!r} is no classifier of scikit-learn")
    return kind


def _check(given: Mapping[str, Any], allowed: Any, where: str) -> None:
    if unknown := sorted(set(given) - set(allowed)):
        raise StudyError(
            f"unknown parameter {unknown[0]!r} in {where}; allowed: {', '.join(sorted(allowed))}"
        )
