"""Reconciliation: compare each account's ledger with its bank, diagnose gaps and start repairs."""
