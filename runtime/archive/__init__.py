"""Archive: sealed segments of `webhooks` and `changesets`, and reads of archive and topic as one log."""
