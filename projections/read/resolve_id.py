"""What an id names: a transaction, a row or an account of the ledger, a changeset, an event, a review, an Item or an
account; ours or Plaid's.
"""

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

ITEMS_A_LOOK = 10_000
"""Items in which one statement looks for a transaction by Plaid's id: an own id is computed for each, and 10,000
look-ups by primary key take some 30 ms. An index by Plaid's ids would cost every insert for the sake of this."""

_PLACE = re.compile(r"(\d{1,5}):(\d{1,18})(?:\.(\d{1,9}))?", re.ASCII)
_OWN = re.compile(r"([0-9a-f]{32})(?:\.(\d{1,9}))?", re.ASCII)


async def explain_id(connection: asyncpg.Connection, name: str) -> Row | None:
    """What is named, explained; None where nothing is named so. Call it in a snapshot."""
    if place := _PLACE.fullmatch(name):
        return await _at(connection, LogOffset(int(place[1]), int(place[2])), place[3])
    if own := _OWN.fullmatch(name):
        return await _ours(connection, bytes.fromhex(own[1]), own[2])
    return await _plaids(connection, name)


async def _at(connection: asyncpg.Connection, place: LogOffset, number: str | None) -> Row | None:
    if number is None:
        return await explain.changeset(connection, place)
    return await explain.event(connection, place, int(number))


async def _ours(connection: asyncpg.Connection, own: bytes, number: str | None) -> Row | None:
    user = await connection.fetchval(_USER_OF, own)
    if number is not None:
        return None if user is None else await explain.ledger_row(connection, user, own, int(number))
    if user is not None:
        told = await explain.transaction(connection, user, own)
        return told or await explain.opening(connection, user, own)
    place = await lineage.by_id(connection, own)
    if place is not None:
        return await explain.changeset(connection, place)
    return await explain.ledger_account(connection, own) or await explain.review(connection, own)


async def _plaids(connection: asyncpg.Connection, name: str) -> Row | None:
    account = await connection.fetchrow(_ACCOUNT, name)
    if account is not None:
        return await explain.account(connection, account["user_number"], account["item_id"], name)
    told = await explain.item(connection, name)
    if told is not None:
        return told
    own = await _by_plaids_id(connection, name)
    return None if own is None else await _ours(connection, own, None)


async def _by_plaids_id(connection: asyncpg.Connection, name: str) -> bytes | None:
    """The transaction that has this id at Plaid, had it first, or was linked with it by a rule."""
    linked: bytes | None = await connection.fetchval(_LINKED, name)
    last = ""
    while linked is None:
        items = [row["item_id"] for row in await connection.fetch(_ITEMS, last, ITEMS_A_LOOK)]
        if not items:
            return None
        own_ids = [own_id(name, salt=item.encode()) for item in items]
        linked = await connection.fetchval(_TRANSACTION, own_ids, name, items)
        last = items[-1]
    return linked


# An opening balance has transfers and no transaction.
_USER_OF = """
SELECT coalesce((SELECT user_number FROM reads.transactions WHERE own_id = $1),
                (SELECT user_number FROM reads.ledger_transfers WHERE own_id = $1 LIMIT 1))"""

_ACCOUNT = "SELECT item_id, user_number FROM reads.accounts WHERE account_id = $1 ORDER BY known_at DESC LIMIT 1"

_LINKED = "SELECT own_id FROM reads.transaction_matches WHERE transaction_id = $1 LIMIT 1"

_ITEMS = "SELECT item_id FROM reads.items WHERE item_id > $1 ORDER BY item_id LIMIT $2"

# By the primary key, and by the small index of rows whose own id comes from another id. What has the id now goes first.
_TRANSACTION = """
SELECT own_id FROM (
    SELECT own_id, transaction_id FROM reads.transactions
     WHERE own_id_inherited AND item_id = ANY($3::text[]) AND transaction_id = $2
     UNION ALL
    SELECT own_id, transaction_id FROM reads.transactions WHERE own_id = ANY($1::bytea[])) AS found
 ORDER BY transaction_id <> $2 LIMIT 1"""
