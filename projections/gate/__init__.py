"""TODO projections/gate."""
