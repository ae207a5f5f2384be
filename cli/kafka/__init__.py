"""TODO cli/kafka."""
