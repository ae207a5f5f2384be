"""TODO gateway/handlers/syncs."""
