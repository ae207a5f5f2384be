"""Resolve an id, ours or Plaid's, to the record that has it, and explain that record."""

import re

import asyncpg

from projections.read import explain, lineage
from projections.read.lineage import LogOffset
from projections.read.queries import Row
from schemas.ids import own_id

LOOKED_FOR = (
    "a transaction, ledger account, changeset or review (32 hex digits), a ledger row (a transaction's id, a dot, its "
    "number), an event or changeset by its place (partition:offset.number), Plaid's id of a transaction, an account "
    "or an Item"
)

ITEMS_PER_LOOKUP = 10_000
"""Items in which one statement looks up a transaction by Plaid's id: an own id is computed for each, and 10,000
look-ups by primary key take some 30 ms. An index by Plaid's ids would cost every insert for this rare query."""

_LOG_OFFSET = re.compile(r"(\d{1,5}):(\d{1,18})(?:\.(\d{1,9}))?", re.ASCII)
_OWN_ID = re.compile(r"([0-9a-f]{32})(?:\.(\d{1,9}))?", re.ASCII)


async def explain_id(connection: asyncpg.Connection, name: str) -> Row | None:
    """Explain the record with this id; None where there is none. The connection must be in a snapshot."""
    if match := _LOG_OFFSET.fullmatch(name):
        log_offset = LogOffset(int(match[1]), int(match[2]))
        if match[3] is None:
            return await explain.changeset(connection, log_offset)
        return await explain.event(connection, log_offset, int(match[3]))
    if match := _OWN_ID.fullmatch(name):
        return await _explain_own_id(connection, bytes.fromhex(match[1]), match[2])
    return await _explain_plaid_id(connection, name)


async def _explain_own_id(connection: asyncpg.Connection, own: bytes, number: str | None) -> Row | None:
    user = await connection.fetchval(_USER_OF, own)
    if number is not None:
        return None if user is None else await explain.ledger_row(connection, user, own, int(number))
    if user is not None:
        return await explain.transaction(connection, user, own) or await explain.opening(connection, user, own)
    log_offset = await lineage.by_id(connection, own)
    if log_offset is not None:
        return await explain.changeset(connection, log_offset)
    return await explain.ledger_account(connection, own) or await explain.review(connection, own)


async def _explain_plaid_id(connection: asyncpg.Connection, name: str) -> Row | None:
    account = await connection.fetchrow(_ACCOUNT, name)
    if account is not None:
        return await explain.account(connection, account["user_number"], account["item_id"], name)
    if document := await explain.item(connection, name):
        return document
    own = await _transaction_by_plaid_id(connection, name)
    return None if own is None else await _explain_own_id(connection, own, None)


async def _transaction_by_plaid_id(connection: asyncpg.Connection, name: str) -> bytes | None:
    """Return the transaction that has this id at Plaid, had it first, or was matched with it by a rule."""
    own: bytes | None = await connection.fetchval(_MATCHED, name)
    last = ""
    while own is None:
        items = [row["item_id"] for row in await connection.fetch(_ITEMS, last, ITEMS_PER_LOOKUP)]
        if not items:
            return None
        own_ids = [own_id(name, salt=item.encode()) for item in items]
        own = await connection.fetchval(_TRANSACTION, own_ids, name, items)
        last = items[-1]
    return own


# An opening balance has transfers and no transaction.
_USER_OF = """
SELECT coalesce((SELECT user_number FROM reads.transactions WHERE own_id = $1),
                (SELECT user_number FROM reads.ledger_transfers WHERE own_id = $1 LIMIT 1))"""

_ACCOUNT = "SELECT item_id, user_number FROM reads.accounts WHERE account_id = $1 ORDER BY known_at DESC LIMIT 1"

_MATCHED = "SELECT own_id FROM reads.transaction_matches WHERE transaction_id = $1 LIMIT 1"

_ITEMS = "SELECT item_id FROM reads.items WHERE item_id > $1 ORDER BY item_id LIMIT $2"

# By the primary key and the partial index transactions_inherited. The row that has the id now comes first.
_TRANSACTION = """
SELECT own_id FROM (
    SELECT own_id, transaction_id FROM reads.transactions
     WHERE own_id_inherited AND item_id = ANY($3::text[]) AND transaction_id = $2
     UNION ALL
    SELECT own_id, transaction_id FROM reads.transactions WHERE own_id = ANY($1::bytea[])) AS named
 ORDER BY transaction_id <> $2 LIMIT 1"""
