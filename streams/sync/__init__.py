"""Sync run: read one Item from Plaid and append what is new to `changesets`."""
