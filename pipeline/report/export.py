"""What an exported model is: how near it is to the original, and where it must not be used."""

from pipeline.report.table import Part, Record


def tables(card: Record) -> list[Part]:
    """The parts of a report on the model card of ``headrace export``."""
    largest = card["compared"]["largest_difference"]
    parts: list[Part] = [f"Probabilities differ from the model's by {largest:.0e} at most."]
    for metric, name in (("accuracy", "Accuracy"), ("auroc", "AUROC")):
        if both := card.get("int8", {}).get(metric):
            values = f"{both['float32']:.3f}, with 8 bits {both['int8']:.3f}"
            parts.append(f"{name} on validation: {values}.")
    return [*parts, *card["limits"]]
