"""TODO sandbox/bench."""
