"""Why accuracy falls between two hospitals: tests, decompositions and fixes on features."""
