"""What a saved head says of images, as text for a terminal."""

from pipeline.predict import Predictions
from pipeline.report.text_tables import new_table, number, render
from pipeline.words import counted, printable

_PATH_WIDTH = 60
_SHOWN = 10


def predict_text(found: Predictions) -> str:
    """A line for each image, then what could not be used, then what the head is."""
    table = new_table(["image", "called", "probability"], left=2)
    for row in found.rows:
        table.add_row(_end_of(row.path), printable(row.called), number(max(row.probability)))
    lines = [render(table)]
    lines += [f"  skipped {one.path}: {one.reason}" for one in found.skipped[:_SHOWN]]
    if len(found.skipped) > _SHOWN:
        lines.append(f"  and {len(found.skipped) - _SHOWN} more; --json lists all")
    model, stored = found.model, len(found.rows) - found.computed
    members = f", mean of {len(model.seeds)} seeds" if len(model.seeds) > 1 else ""
    networks = "+".join(network.recipe.backbone for network in model.networks)
    lines.append(
        f"{printable(model.head)} on {networks}{members}, fitted on "
        f"{counted(model.images, 'image')} of {printable(model.study)}; "
        f"{counted(found.computed, 'image')} computed, {max(stored, 0)} from the store"
    )
    if model.contains_training_features:
        lines.append(
            "this model file holds features of the images it was fitted on: treat it as patient "
            "data"
        )
    lines.append("Research software, not a medical device: no diagnosis may rest on this.")
    return "\n".join(lines)


def _end_of(path: str) -> str:
    """The end of a long path: it tells two images apart."""
    return path if len(path) <= _PATH_WIDTH else "..." + path[3 - _PATH_WIDTH :]
