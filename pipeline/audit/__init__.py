"""The audit: leaks, near copies, shortcuts and doubtful labels."""
