"""TODO runtime/postgres."""
