"""Incidents and dead letters: everything that operators have to act on."""
