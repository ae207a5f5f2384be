"""TODO projections/matching."""
