"""Scores of probabilities by domain, with intervals, and heads paired on the same images."""
