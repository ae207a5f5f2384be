"""Deterministic simulation: the real code of the streams stage in a world that a seed decides."""
