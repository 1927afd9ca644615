"""Stage 3: networks trained end to end or in part, by one loop, to compare with frozen ones."""
