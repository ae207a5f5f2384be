"""TODO sandbox/observe."""
