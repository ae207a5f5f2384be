"""TODO projections/ledger."""
