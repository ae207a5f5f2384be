"""TODO streams/schedule."""
