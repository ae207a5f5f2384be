"""TODO projections/rebuild."""
