"""TODO projections/store."""
