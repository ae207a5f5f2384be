"""Gate: decide which records of `changesets` count, and withhold those of quarantined Items."""
