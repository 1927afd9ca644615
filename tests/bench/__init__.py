"""Tables of the measurements, line by line as they are known."""


def heading(*columns: str) -> None:
    """The first two lines of a table."""
    row(*columns)
    row(*"-" * len(columns))


def row(*cells: object) -> None:
    """One further line of it."""
    print("|", " | ".join(map(str, cells)), "|", flush=True)
