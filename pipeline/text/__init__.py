"""How numbers, names and tables are put into words, CSV, Markdown and JSON."""
