"""Metrics, intervals, paired tests and selection: what a number of heads is worth."""
