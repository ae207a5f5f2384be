"""TODO runtime/incidents."""
