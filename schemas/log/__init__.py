"""TODO schemas/log."""
