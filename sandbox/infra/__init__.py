"""TODO sandbox/infra."""
