"""Stage 2: heads on stored features, fitted, scored and compared."""
