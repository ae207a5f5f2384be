"""Types of events: those that a changeset seals, and those that Tartan publishes."""

TRANSACTION_ADDED = "transaction.added"
TRANSACTION_MODIFIED = "transaction.modified"
TRANSACTION_REMOVED = "transaction.removed"
BALANCE_REPORTED = "balance.reported"
"""Sealed: what a sync said of an account (a cached balance)."""
BALANCE_REPORTED_REALTIME = "balance.reported_realtime"
BALANCE_UPDATED = "balance.updated"
"""Published: the reported balance differs from the one before it of the same source."""
ITEM_LINKED = "item.linked"
ITEM_UNLINKED = "item.unlinked"
ITEM_STATE_CHANGED = "item.state_changed"
HISTORY_RESTATED = "history.restated"
TRANSACTION_EDITED = "transaction.edited"
DECISION_MADE = "decision.made"

APPROVE_REMOVALS, REJECT_REMOVALS = "removals.approved", "removals.rejected"
"""Decisions about removals that a restated history implies. Their subject is the hex id of that changeset."""

APPROVE_REVIEW, REJECT_REVIEW = "review.approved", "review.rejected"
"""Decisions about whether a transaction is one that was known before. Their subject is the hex id of the review."""

PUBLIC_SOURCE = "tartan"

ACTIVE = "active"
LOGIN_REQUIRED = "login_required"
PENDING_DISCONNECT = "pending_disconnect"
PENDING_EXPIRATION = "pending_expiration"
REVOKED = "revoked"
GONE = "gone"
REFUSED = "refused"
"""Plaid will never serve the Item, or refuses our requests as wrong: an operator has to look."""
UNLINKED = "unlinked"
ITEM_STATES = (ACTIVE, LOGIN_REQUIRED, PENDING_DISCONNECT, PENDING_EXPIRATION, REVOKED, GONE, REFUSED, UNLINKED)
SYNCABLE_STATES = frozenset({ACTIVE, PENDING_DISCONNECT, PENDING_EXPIRATION})
"""States in which Plaid still answers /transactions/sync. Source: PLAID.md 1.5, 1.9."""
