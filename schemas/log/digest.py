"""Digests that tests and operators compare: of the state and of all rows. Pure.

*State*: the bank's final values by Plaid id, and balances; a faulty run = a clean run = the bank's own truth.
*Full*: rows, transfers, versions and net events with own ids; live = any replay of the same log.
"""

import hashlib
from collections.abc import Iterable

TransactionState = tuple[str, str, str, str, str, str, bool, str | None, str | None, str | None]
"""item, transaction, account, amount text, currency, date, pending, name, merchant, detailed category."""
AccountState = tuple[str, str, str | None, str | None, str | None, str]
"""item, account, current, available, limit (decimal texts), currency."""

_NONE = "\x01"


def state_digest(transactions: Iterable[TransactionState], accounts: Iterable[AccountState]) -> str:
    """Return SHA-256 over the sorted final values, as 64 hex digits."""
    return _digest(("transaction", transactions), ("account", accounts))


def full_digest(**tables: Iterable[tuple[object, ...]]) -> str:
    """Return SHA-256 over the sorted rows of named tables, as 64 hex digits."""
    return _digest(*sorted(tables.items()))


def _digest(*tables: tuple[str, Iterable[tuple[object, ...]]]) -> str:
    total = hashlib.sha256()
    for name, rows in tables:
        for line in sorted("\x1f".join(_NONE if value is None else str(value) for value in row) for row in rows):
            total.update(f"{name}\x1e{line}\n".encode("utf-8", "surrogatepass"))
    return total.hexdigest()
