"""Projections: fold changesets into tables, a ledger, public events and pushes."""
