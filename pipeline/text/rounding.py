"""A number that is zero but for rounding is shown as zero, without a sign."""

#: Below this a number is what sums and iterations leave of 0: shares, points and statistics
#: are larger, or are nothing.
_NOTHING = 1e-9


def settled(value: float) -> float:
    """The value, or 0 for what rounding has left of it: -4e-18 is neither below 0 nor -0.0."""
    return 0.0 if abs(value) < _NOTHING else value
