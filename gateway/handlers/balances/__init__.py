"""TODO gateway/handlers/balances."""
