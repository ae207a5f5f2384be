"""TODO schemas/encoding."""
