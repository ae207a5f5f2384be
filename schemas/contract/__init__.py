"""TODO schemas/contract."""
