"""TODO sandbox/simulator/webhooks."""
