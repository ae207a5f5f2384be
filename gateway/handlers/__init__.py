"""TODO gateway/handlers."""
