"""The audit: leaks, near copies, confounders and doubtful labels."""
