"""TODO sandbox/demo."""
