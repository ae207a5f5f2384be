"""A deterministic Plaid: a seeded bank with its own ground truth behind Plaid's HTTP API.

The core knows no clock and no network: `bank` holds Items and their logs of changes, `merchants` and
`scenarios` invent what happens, `sync` cuts a log into pages behind cursors, `truth` says what a reader
must end up with, `faults` and `limits` decide what goes wrong, `delivery` what becomes of a webhook.
`world` composes them with a clock and an outbox; `endpoints` speaks Plaid, `control` speaks to tests and
the demo; `server` and `sender` are the only modules that await.

The same seed, the same start and the same calls give the same bytes.
"""
