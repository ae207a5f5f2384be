"""TODO streams/storage."""
