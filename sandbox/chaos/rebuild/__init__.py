"""TODO sandbox/chaos/rebuild."""
