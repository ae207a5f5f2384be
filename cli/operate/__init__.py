"""Commands that operate an installation: read its state, decide about Items, rebuild, republish and archive."""
