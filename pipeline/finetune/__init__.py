"""Stage 3: train networks end to end or in part, and compare them with frozen networks."""
