"""TODO streams/limits."""
