"""Why accuracy falls from the source to a target: tests, effects, adaptation, a verdict."""
