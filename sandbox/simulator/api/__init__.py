"""TODO sandbox/simulator/api."""
