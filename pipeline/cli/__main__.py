"""``python -m pipeline.cli``, as ``torchrun`` calls it."""

from pipeline.cli.commands import main

main()
