"""Observe a running stack from outside: its latency, its messages, its reads and its log."""
