"""Counts as a sentence has them: one image, two images."""


def counted(n: int, noun: str, plural: str = "") -> str:
    """``1 copy``, ``2 copies``.

    Args:
        n: How many.
        noun: Of one.
        plural: Of several; the noun with an s where left out.
    """
    return f"{n} {noun if n == 1 else plural or f'{noun}s'}"


def are(n: int) -> str:
    """``is`` for one, else ``are``."""
    return "is" if n == 1 else "are"


def have(n: int) -> str:
    """``has`` for one, else ``have``."""
    return "has" if n == 1 else "have"
