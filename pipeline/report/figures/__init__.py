"""Figures of the stages, drawn from the files that the stages wrote."""
