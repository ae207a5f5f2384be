"""Real-time balances: the paid request to a bank, its record in the log, and the cache of accounts."""
