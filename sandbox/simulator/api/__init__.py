"""Serve Plaid's HTTP API: dispatch, endpoints, errors, rate limits, JSON and webhook signatures."""
