"""TODO sandbox/simulator/bank."""
