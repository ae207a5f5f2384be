"""TODO streams/sync."""
