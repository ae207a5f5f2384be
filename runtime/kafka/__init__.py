"""TODO runtime/kafka."""
