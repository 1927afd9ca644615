"""Figures of the stages, drawn from their files; matplotlib is imported only here below."""

from importlib import import_module
from pathlib import Path


def draw(stage: str, results: Path) -> list[Path]:
    """Draw all figures of ``heads``, ``finetune`` or ``shift`` into ``results/figures``.

    Returns:
        The files written.

    Raises:
        MissingPredictionsError: The stage has not been run.
    """
    written: list[Path] = import_module(f"pipeline.report.figures.{stage}").draw(results)
    return written
