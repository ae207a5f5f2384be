"""Scheduler of sync runs: due Items, leases, rate limits, breakers and the state of the queue, all in Postgres."""
