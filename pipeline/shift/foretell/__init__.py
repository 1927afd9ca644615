"""What can be said of a target without its labels."""
