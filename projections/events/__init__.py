"""TODO projections/events."""
