"""TODO runtime/operators."""
