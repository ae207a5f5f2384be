"""TODO streams/webhooks."""
