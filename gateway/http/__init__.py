"""HTTP parts that all handlers share: authentication, parameters, problem documents, cursors and idempotency."""
