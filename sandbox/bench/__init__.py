"""Benchmarks: the whole installation, the projector alone, a rebuild, and the usual design beside them."""
