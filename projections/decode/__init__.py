"""TODO projections/decode."""
