"""Two samples compared: statistics, relabelled by patient, probes, the direction between them."""
