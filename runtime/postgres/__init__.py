"""Postgres: pool and transactions, tables of schema `tartan`, classes of errors, locks and clock."""
