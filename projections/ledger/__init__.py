"""Ledger rules: postings of a transaction, from the bank's payload and the user's fields."""
