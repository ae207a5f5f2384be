"""TODO projections/reconcile."""
