"""Schedule: make Items due by time, and claim due Items in fair order."""
