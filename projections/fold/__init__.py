"""TODO projections/fold."""
