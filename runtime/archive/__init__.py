"""TODO runtime/archive."""
