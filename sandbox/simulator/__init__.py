"""A deterministic Plaid: a seeded bank with its own ground truth behind Plaid's HTTP API.

The core knows no clock and no network. `bank` holds Items and their logs of changes; `merchants`, `patterns`,
`drawing` and `scenarios` invent what happens, `dictation` takes it word by word; `sync` cuts a log into pages behind
cursors; `truth` says what a reader must end up with; `faults` and `limits` decide what goes wrong, `delivery` what
becomes of a webhook. `world` composes them with a clock, `troubles` breaks an Item or a bank. `door` answers Plaid's
requests and can be called without a network; `inprocess` is Plaid so for a simulation in virtual time, and awaits
nothing but the sleep that it is given. Only `server`, `control`, `sender` and `pulse` await more.

The same seed, the same clock and the same calls give the same bytes, webhooks and their signatures included.
"""
