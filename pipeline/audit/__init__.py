"""The audit: leaks, near duplicates, shortcuts and doubtful labels."""
