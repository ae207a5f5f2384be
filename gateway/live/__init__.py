"""TODO gateway/live."""
