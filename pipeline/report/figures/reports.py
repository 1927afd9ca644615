"""The JSON report of a stage, as its figures read it."""

import json
from pathlib import Path
from typing import Any

from pipeline.errors import MissingPredictionsError


def read_report(file: Path, stage: str) -> Any:
    """The values of a report.

    Args:
        file: What the stage wrote.
        stage: The command that writes it.

    Raises:
        MissingPredictionsError: It cannot be read: the stage has not been run.
    """
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as cause:
        raise MissingPredictionsError(
            f"{file} cannot be read ({cause}); first run: headrace {stage} STUDY"
        ) from cause
