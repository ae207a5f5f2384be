"""TODO projections/model."""
