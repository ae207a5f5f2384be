"""TODO runtime/users."""
