"""Why something is as it is: from a transaction, a ledger row, a balance or an event back to the changesets that made
it, with Plaid's request ids and the webhook, tick or person behind each.

Shape: one document. `kind` says what it explains, `is` what that is now. Whatever a changeset made carries that one's
place (`changeset`, `partition:offset`), and `changesets` has each place that the document names.
"""

import json
from collections.abc import Iterable
from typing import Any

import asyncpg

from projections.events.public_events import decoded, key_of, read_transaction
from projections.read import history, lineage, queries
from projections.read.lineage import LogOffset
from projections.read.queries import Row, to_json
from projections.store.rows import decompress

VERSIONS_MAX = 100
"""Versions and reports that are listed, the newest; `history` has the others."""
TRANSFERS_MAX = 200
"""Transfers that are listed, the newest: a transaction has two or three, a ledger account has them without end."""
EVENTS_MAX = 100
"""Events of a changeset that are listed; the link of an Item has thousands."""
CHANGESETS_MAX = 20
"""Changesets of an Item that are listed, the newest; its history of syncs has the others."""

_OF_TRANSACTIONS = "transaction."
"""Types of events about transactions begin with it."""


async def transaction(connection: asyncpg.Connection, user: int, own_id: bytes) -> Row | None:
    """All that led to a transaction as it is; None where the user has no such one."""
    shown = await queries.transaction(connection, user, own_id)
    versions = await history.versions(connection, user, own_id, limit=VERSIONS_MAX)
    if shown is None or versions is None:
        return None
    item = await connection.fetchrow(_ITEM, shown["item_id"])
    assert item is not None, "a transaction belongs to an Item"
    partition = item["partition"]
    told = [
        {name: one[name] for name in ("version", "event", "changed", "status", "item_id", "transaction_id", "known_at")}
        | {"changeset": one["changeset"]["place"]}
        for one in versions.rows
    ]
    said = json.loads(await connection.fetchval(_USER_FIELDS, own_id) or "{}")
    return await _told(
        connection,
        user,
        {
            "kind": "transaction",
            "is": shown,
            "item": _shown(item),
            "versions": told,
            "transfers": await _transfers_of(connection, user, own_id),
            "user_fields": [
                {"field": name, "value": word["value"], "changeset": str(LogOffset(partition, word["at"]))}
                for name, word in sorted(said.items())
            ],
            "links": [_link(row, partition) for row in await connection.fetch(_LINKS, user, own_id)],
            "reviews": [_review(row, partition) for row in await connection.fetch(_REVIEWS_ABOUT, user, own_id)],
        },
    )


async def opening(connection: asyncpg.Connection, user: int, own_id: bytes) -> Row | None:
    """The transfers of an account's opening balance."""
    moved = await _transfers_of(connection, user, own_id)
    if not moved:
        return None
    return await _told(connection, user, {"kind": "opening", "is": {"id": own_id.hex()}, "transfers": moved})


async def ledger_row(connection: asyncpg.Connection, user: int, own_id: bytes, number: int) -> Row | None:
    """One transfer, those that it takes back or that take it back, and the transaction or opening that it is of."""
    moved = await _transfers_of(connection, user, own_id)
    one = next((row for row in moved if row["number"] == number), None)
    if one is None:
        return None
    undoes = [row for row in moved if row["number"] == one["reverses"] or row["reverses"] == number]
    about = await transaction(connection, user, own_id) or await opening(connection, user, own_id)
    return await _told(
        connection,
        user,
        {"kind": "ledger_row", "is": one, "transfers": undoes, "changeset": one["changeset"], "about": about},
    )


async def ledger_account(connection: asyncpg.Connection, account: bytes) -> Row | None:
    """A ledger account, its balances, and the last transfers of which they are the sum."""
    row = await connection.fetchrow(_LEDGER_ACCOUNT, account)
    if row is None:
        return None
    balances = await connection.fetch(_BALANCES, account)
    user = row["user_number"]
    own_ids = await queries.opening_ids(connection, user)
    moved = _transfers(await connection.fetch(_TRANSFERS_BY, user, own_ids, account, TRANSFERS_MAX))
    return await _told(
        connection,
        user,
        {
            "kind": "ledger_account",
            "is": _shown(row),
            "balances": [to_json(one) for one in balances],
            "transfers": moved,
        },
    )


async def account(connection: asyncpg.Connection, user: int, item_id: str, account_id: str) -> Row | None:
    """A bank's account, what was reported of it, and its balances in the ledger."""
    shown = [
        row for row in await queries.accounts(connection, user, item_id=item_id) if row["account_id"] == account_id
    ]
    item = await connection.fetchrow(_ITEM, item_id)
    if not shown or item is None:
        return None
    reports = [
        {"changeset": str(LogOffset(item["partition"], row["changeset"])), **history.report(row)}
        for row in await connection.fetch(_REPORTS, item_id, account_id, VERSIONS_MAX)
    ]
    balances = await connection.fetch(_BALANCES_OF, user, account_id)
    return await _told(
        connection,
        user,
        {
            "kind": "account",
            "is": shown[0],
            "item": _shown(item),
            "reports": reports,
            "balances": [to_json(one) for one in balances],
        },
    )


async def item(connection: asyncpg.Connection, item_id: str) -> Row | None:
    """An Item and the last changesets about it."""
    row = await connection.fetchrow(_ITEM, item_id)
    if row is None:
        return None
    user = row["user_number"]
    found = await queries.changesets(connection, user, item_id, limit=CHANGESETS_MAX)
    listed = [{"changeset": str(LogOffset(one["partition"], one["source_offset"]))} for one in found]
    return await _told(connection, user, {"kind": "item", "is": _shown(row), "listed": listed})


async def changeset(connection: asyncpg.Connection, place: LogOffset) -> Row | None:
    """A changeset and what it told readers."""
    row = await connection.fetchrow(_CHANGESET, *place)
    if row is None:
        return None
    return await _told(
        connection,
        row["user_number"],
        {
            "kind": "changeset",
            "is": {"place": str(place), "id": row["id"].hex()},
            "changeset": str(place),
            "events": _events(row["events"], range(EVENTS_MAX)),
            "events_expired": row["events"] is None and row["redriven_by"] is None,
        },
    )


async def event(connection: asyncpg.Connection, place: LogOffset, number: int) -> Row | None:
    """An event at its position, and the transaction that it told of."""
    row = await connection.fetchrow(_CHANGESET, *place)
    if row is None:
        return None
    told = _events(row["events"], range(number, number + 1))
    if not told:
        return None
    [one], user = told, row["user_number"]
    about = None
    if one["type"].startswith(_OF_TRANSACTIONS):
        about = await transaction(connection, user, bytes.fromhex(one["about"]))
    return await _told(connection, user, {"kind": "event", "is": one, "changeset": str(place), "about": about})


async def review(connection: asyncpg.Connection, number: bytes) -> Row | None:
    """A review, and the transaction that it holds."""
    row = await connection.fetchrow(_REVIEW, number)
    if row is None:
        return None
    user = row["user_number"]
    about = await transaction(connection, user, row["own_id"])
    found = _review(row, row["partition"])
    return await _told(connection, user, {"kind": "review", "is": found, "reviews": [found], "about": about})


async def _told(connection: asyncpg.Connection, user: int, told: Row) -> Row:
    """A document with whose it is and with the changesets that it names."""
    places = {LogOffset(*map(int, name.split(":"))) for name in _named(told)}
    owner = await connection.fetchrow(_OWNER, user)
    return {
        **told,
        "user": None if owner is None else dict(owner),
        "changesets": await lineage.changesets(connection, places),
    }


def _named(told: Any) -> Iterable[str]:
    """The places that a document names, save those inside of a document about something else, which has its own."""
    match told:
        case dict():
            for name, value in told.items():
                if name in ("changeset", "decided") and isinstance(value, str):
                    yield value
                elif name != "about":
                    yield from _named(value)
        case list():
            for one in told:
                yield from _named(one)


async def _transfers_of(connection: asyncpg.Connection, user: int, own_id: bytes) -> list[Row]:
    return _transfers(await connection.fetch(_TRANSFERS_OF, user, own_id, TRANSFERS_MAX))


def _transfers(found: Iterable[asyncpg.Record]) -> list[Row]:
    return [{**to_json(row), "changeset": str(LogOffset(row["partition"], row["changeset"]))} for row in found]


def _events(stored: bytes | None, numbers: range) -> list[Row]:
    """The events of a block that have these numbers."""
    if stored is None:
        return []
    found = decoded(decompress(stored))
    return [
        {
            "number": number,
            "type": one.type,
            "about": key_of(one),
            "changed": read_transaction(one.data).changed if one.type.startswith(_OF_TRANSACTIONS) else [],
        }
        for number, one in zip(numbers, found[numbers.start : numbers.stop], strict=False)
    ]


def _shown(row: asyncpg.Record) -> Row:
    """A row with its user. The number is text: it has 63 bits, and many readers of JSON keep 53 of a number."""
    return to_json(row) | {"user_number": str(row["user_number"])}


def _link(row: asyncpg.Record, partition: int) -> Row:
    return {
        **to_json({name: row[name] for name in ("item_id", "transaction_id", "rule", "score", "known_at")}),
        "evidence": json.loads(row["evidence"]),
        "changeset": str(LogOffset(partition, row["changeset"])),
    }


def _review(row: asyncpg.Record, partition: int) -> Row:
    names = ("id", "item_id", "own_id", "reason", "state", "chosen", "known_at", "decided_at")
    return {
        **to_json({name: row[name] for name in names}),
        "candidates": json.loads(row["candidates"]),
        "changeset": str(LogOffset(partition, row["changeset"])),
        "decided": None if row["decided"] is None else str(LogOffset(partition, row["decided"])),
    }


_ITEM = """
SELECT item_id, institution_id, institution_name, state, user_number, partition
  FROM reads.items WHERE item_id = $1"""

_OWNER = "SELECT tenant, user_id FROM tartan.users WHERE user_number = $1"

_USER_FIELDS = "SELECT user_fields FROM reads.transactions WHERE own_id = $1"

_TRANSFER = """
SELECT t.own_id, t.number, t.amount, t.currency, t.layer, t.reverses, t.effective, t.known_at, t.partition,
       t.changeset, d.id AS debit, d.kind AS debit_kind, d.reference AS debit_reference,
       c.id AS credit, c.kind AS credit_kind, c.reference AS credit_reference
  FROM reads.ledger_transfers t
  JOIN reads.ledger_accounts d ON d.id = t.debit JOIN reads.ledger_accounts c ON c.id = t.credit"""

_TRANSFERS_OF = f"""
SELECT * FROM ({_TRANSFER} WHERE t.user_number = $1 AND t.own_id = $2 ORDER BY t.number DESC LIMIT $3) AS newest
 ORDER BY number"""

_TRANSFERS_BY = f"""{_TRANSFER}
  JOIN {queries.OF_USER} ON of_user.own_id = t.own_id
 WHERE t.debit = $3 OR t.credit = $3
 ORDER BY t.known_at DESC, t.changeset DESC, t.own_id, t.number DESC LIMIT $4"""

_LINKS = (
    "SELECT * FROM reads.transaction_matches WHERE own_id = $2 AND user_number = $1 ORDER BY changeset, transaction_id"
)

_REVIEWS_ABOUT = """
SELECT * FROM reads.reviews WHERE user_number = $1 AND (own_id = $2 OR chosen = $2) ORDER BY changeset, id"""

_REVIEW = "SELECT r.*, i.partition FROM reads.reviews r JOIN reads.items i USING (item_id) WHERE r.id = $1"

_LEDGER_ACCOUNT = "SELECT id, user_number, kind, reference, currency FROM reads.ledger_accounts WHERE id = $1"

_BALANCE = "SELECT account, kind, reference, currency, layer, debits, credits, balance FROM reads.ledger_balances"

_BALANCES = f"{_BALANCE} WHERE account = $1 ORDER BY layer"

_BALANCES_OF = f"{_BALANCE} WHERE user_number = $1 AND kind = 'bank' AND reference = $2 ORDER BY currency, layer"

_REPORTS = """
SELECT version, source, payload, payload_schema, changeset, known_at FROM reads.account_versions
 WHERE item_id = $1 AND account_id = $2 ORDER BY version DESC LIMIT $3"""

_CHANGESET = """
SELECT id, user_number, events, redriven_by FROM reads.changesets WHERE partition = $1 AND source_offset = $2"""
