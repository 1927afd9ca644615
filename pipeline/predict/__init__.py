"""Saved heads asked about new images."""
