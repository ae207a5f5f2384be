"""Simulate the streams stage deterministically: its real code in an environment that a seed decides."""
