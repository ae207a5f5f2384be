"""TODO runtime/plaid."""
