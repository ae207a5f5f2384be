"""Rebuild: fill the next version of the projections from the log, compare it with the live one, and swap the two."""
