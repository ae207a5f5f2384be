"""TODO projections/read."""
