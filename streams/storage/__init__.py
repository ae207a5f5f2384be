"""Postgres behind the ports of this stage."""
