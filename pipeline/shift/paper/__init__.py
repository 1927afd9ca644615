"""The stage's report: JSON, tables, text to read, text for a terminal."""
