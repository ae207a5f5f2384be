"""TODO projections/publish."""
