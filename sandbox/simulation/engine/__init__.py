"""TODO sandbox/simulation/engine."""
