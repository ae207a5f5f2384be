"""Changesets become tables, a ledger, public events and pushes."""
