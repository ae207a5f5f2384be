"""TODO sandbox/simulator/control."""
