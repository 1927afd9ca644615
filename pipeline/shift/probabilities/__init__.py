"""Whether probabilities and thresholds of the source serve on the target."""
