"""TODO projections/verify."""
