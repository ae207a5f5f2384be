"""Decode records of the log: heads, sealed blocks of events, and transactions for the fold and for COPY."""
