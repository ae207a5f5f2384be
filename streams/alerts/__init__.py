"""TODO streams/alerts."""
