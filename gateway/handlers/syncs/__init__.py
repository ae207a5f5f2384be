"""Sync runs: start one, wait for it, find it again, and count what it changed."""
