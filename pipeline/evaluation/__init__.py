"""Metrics, intervals, paired tests and selection: how far a number can be trusted."""
