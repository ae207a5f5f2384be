"""A deterministic Plaid: a seeded bank with its ground truth behind Plaid's HTTP API."""
