"""TODO runtime/scheduler."""
