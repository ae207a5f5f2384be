"""Verification of the stored state: invariants of the tables, of the log, of the public topics and of the archive."""
