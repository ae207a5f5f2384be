"""TODO sandbox/simulation/memory."""
