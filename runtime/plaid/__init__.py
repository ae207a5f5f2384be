"""Plaid's API: the client, and its answers decoded exactly."""
