"""Simulate Plaid deterministically: a seeded bank with its own ground truth behind Plaid's HTTP API.

The same seed, clock and calls give the same bytes, including webhooks and their signatures.

The core reads no machine clock and no network: `bank` holds Items and their change logs, `api.dispatcher` answers
Plaid's requests, `control` breaks Items and banks on demand, `webhooks.delivery` schedules deliveries.
`simulated_plaid` composes them with a clock. `inprocess` serves a simulation in virtual time.
Only `api.server`, `control.control_api`, `webhooks.sender` and `activity` do I/O.
"""
