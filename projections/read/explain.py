"""Explain why a record is as it is: trace it to its changesets, Plaid's request ids and the webhook, tick or person.

Shape: one document. `kind` names the type of the explained record, `is` has its present values. Each part carries the
offset of the changeset that made it (`changeset`, `partition:offset`), and `changesets` has each of those offsets.
"""

import json
from collections.abc import Iterable
from typing import Any

import asyncpg

from projections.events.public_events import decode_block, key_of, read_transaction
from projections.read import history, lineage, queries
from projections.read.lineage import LogOffset
from projections.read.queries import Row, to_json
from projections.store.rows import decompress
from runtime.plaid.repair import REPAIRS
from schemas.encoding import codec

VERSIONS_MAX = 100
"""Newest versions and reports that are listed; `history` has the others."""
TRANSFERS_MAX = 200
"""Newest transfers that are listed: a transaction has two or three, a ledger account has no limit."""
EVENTS_MAX = 100
"""Events of a changeset that are listed; the link of an Item has thousands."""
CHANGESETS_MAX = 20
"""Newest changesets of an Item that are listed; its sync history has the others."""

_TRANSACTION_PREFIX = "transaction."
"""Prefix of the types of events about transactions."""


async def transaction(connection: asyncpg.Connection, user: int, own_id: bytes) -> Row | None:
    """Explain a transaction by its versions, transfers, user fields, matches and reviews; None where there is none."""
    shown = await queries.transaction(connection, user, own_id)
    versions = await history.versions(connection, user, own_id, limit=VERSIONS_MAX)
    if shown is None or versions is None:
        return None
    item = await connection.fetchrow(_ITEM, shown["item_id"])
    stored = await connection.fetchrow(_STORED, own_id)
    assert item is not None, "a transaction belongs to an Item"
    assert stored is not None, "a shown transaction is stored"
    partition = item["partition"]
    names = ("version", "event", "changed", "status", "item_id", "transaction_id", "known_at")
    user_fields = json.loads(stored["user_fields"] or "{}")
    extra = codec.decoder(stored["payload_schema"])(stored["payload"], 0)[0].extra_json
    return await _document(
        connection,
        user,
        {
            "kind": "transaction",
            "is": shown,
            "item": _with_user(item),
            "versions": [
                {name: version[name] for name in names} | {"changeset": version["changeset"]["place"]}
                for version in versions.rows
            ],
            "repairs": json.loads(extra or "{}").get(REPAIRS, {}),
            "transfers": await _transfers_of(connection, user, own_id),
            "user_fields": [
                {"field": name, "value": entry["value"], "changeset": str(LogOffset(partition, entry["at"]))}
                for name, entry in sorted(user_fields.items())
            ],
            "links": [_match(row, partition) for row in await connection.fetch(_MATCHES, user, own_id)],
            "reviews": [_review(row, partition) for row in await connection.fetch(_REVIEWS_ABOUT, user, own_id)],
        },
    )


async def opening(connection: asyncpg.Connection, user: int, own_id: bytes) -> Row | None:
    """Explain an account's opening balance by its transfers."""
    transfers = await _transfers_of(connection, user, own_id)
    if not transfers:
        return None
    document: Row = {"kind": "opening", "is": {"id": own_id.hex()}, "transfers": transfers}
    return await _document(connection, user, document)


async def ledger_row(connection: asyncpg.Connection, user: int, own_id: bytes, number: int) -> Row | None:
    """Explain one transfer by the transfers that it reverses or that reverse it, and its transaction or opening."""
    transfers = await _transfers_of(connection, user, own_id)
    transfer = next((row for row in transfers if row["number"] == number), None)
    if transfer is None:
        return None
    reversals = [row for row in transfers if row["number"] == transfer["reverses"] or row["reverses"] == number]
    document = {
        "kind": "ledger_row",
        "is": transfer,
        "transfers": reversals,
        "changeset": transfer["changeset"],
        "about": await transaction(connection, user, own_id) or await opening(connection, user, own_id),
    }
    return await _document(connection, user, document)


async def ledger_account(connection: asyncpg.Connection, account_id: bytes) -> Row | None:
    """Explain a ledger account's balances by the last transfers of which they are the sum."""
    row = await connection.fetchrow(_LEDGER_ACCOUNT, account_id)
    if row is None:
        return None
    user = row["user_number"]
    own_ids = await queries.opening_ids(connection, user)
    document = {
        "kind": "ledger_account",
        "is": _with_user(row),
        "balances": [to_json(balance) for balance in await connection.fetch(_BALANCES, account_id)],
        "transfers": _transfers(await connection.fetch(_TRANSFERS_BY, user, own_ids, account_id, TRANSFERS_MAX)),
    }
    return await _document(connection, user, document)


async def account(connection: asyncpg.Connection, user: int, item_id: str, account_id: str) -> Row | None:
    """Explain a bank account by its reports and its balances in the ledger."""
    accounts = await queries.accounts(connection, user, item_id=item_id)
    shown = next((row for row in accounts if row["account_id"] == account_id), None)
    item = await connection.fetchrow(_ITEM, item_id)
    if shown is None or item is None:
        return None
    document = {
        "kind": "account",
        "is": shown,
        "item": _with_user(item),
        "reports": [
            {"changeset": str(LogOffset(item["partition"], row["changeset"])), **history.report(row)}
            for row in await connection.fetch(_REPORTS, item_id, account_id, VERSIONS_MAX)
        ],
        "balances": [to_json(balance) for balance in await connection.fetch(_BALANCES_OF, user, account_id)],
    }
    return await _document(connection, user, document)


async def item(connection: asyncpg.Connection, item_id: str) -> Row | None:
    """Explain an Item by its last changesets."""
    row = await connection.fetchrow(_ITEM, item_id)
    if row is None:
        return None
    user = row["user_number"]
    changesets = await queries.changesets(connection, user, item_id, limit=CHANGESETS_MAX)
    listed = [{"changeset": str(LogOffset(each["partition"], each["source_offset"]))} for each in changesets]
    return await _document(connection, user, {"kind": "item", "is": _with_user(row), "listed": listed})


async def changeset(connection: asyncpg.Connection, log_offset: LogOffset) -> Row | None:
    """Explain a changeset by its events."""
    row = await connection.fetchrow(_CHANGESET, *log_offset)
    if row is None:
        return None
    document = {
        "kind": "changeset",
        "is": {"place": str(log_offset), "id": row["id"].hex()},
        "changeset": str(log_offset),
        "events": _events(row["events"], range(EVENTS_MAX)),
        "events_expired": row["events"] is None and row["redriven_by"] is None,
    }
    return await _document(connection, row["user_number"], document)


async def event(connection: asyncpg.Connection, log_offset: LogOffset, number: int) -> Row | None:
    """Explain the event at an event position by its transaction."""
    row = await connection.fetchrow(_CHANGESET, *log_offset)
    events = [] if row is None else _events(row["events"], range(number, number + 1))
    if row is None or not events:
        return None
    [shown], user = events, row["user_number"]
    about = None
    if shown["type"].startswith(_TRANSACTION_PREFIX):
        about = await transaction(connection, user, bytes.fromhex(shown["about"]))
    document: Row = {"kind": "event", "is": shown, "changeset": str(log_offset), "about": about}
    return await _document(connection, user, document)


async def review(connection: asyncpg.Connection, review_id: bytes) -> Row | None:
    """Explain a review by the transaction that it withholds."""
    row = await connection.fetchrow(_REVIEW, review_id)
    if row is None:
        return None
    user = row["user_number"]
    about = await transaction(connection, user, row["own_id"])
    shown = _review(row, row["partition"])
    return await _document(connection, user, {"kind": "review", "is": shown, "reviews": [shown], "about": about})


async def _document(connection: asyncpg.Connection, user: int, document: Row) -> Row:
    """Return a document with its user and with the changesets that it names."""
    offsets = {LogOffset(*map(int, name.split(":"))) for name in _named_offsets(document)}
    owner = await connection.fetchrow(_OWNER, user)
    return {
        **document,
        "user": None if owner is None else dict(owner),
        "changesets": await lineage.changesets(connection, offsets),
    }


def _named_offsets(value: Any) -> Iterable[str]:
    """Yield the offsets that a document names; the document in `about` has its own."""
    match value:
        case dict():
            for name, field in value.items():
                if name in ("changeset", "decided") and isinstance(field, str):
                    yield field
                elif name != "about":
                    yield from _named_offsets(field)
        case list():
            for entry in value:
                yield from _named_offsets(entry)


async def _transfers_of(connection: asyncpg.Connection, user: int, own_id: bytes) -> list[Row]:
    return _transfers(await connection.fetch(_TRANSFERS_OF, user, own_id, TRANSFERS_MAX))


def _transfers(rows: Iterable[asyncpg.Record]) -> list[Row]:
    return [{**to_json(row), "changeset": str(LogOffset(row["partition"], row["changeset"]))} for row in rows]


def _events(stored: bytes | None, numbers: range) -> list[Row]:
    """Return the events of a stored block that have these numbers."""
    if stored is None:
        return []
    events = decode_block(decompress(stored))
    return [
        {
            "number": number,
            "type": event.type,
            "about": key_of(event),
            "changed": read_transaction(event.data).changed if event.type.startswith(_TRANSACTION_PREFIX) else [],
        }
        for number, event in zip(numbers, events[numbers.start : numbers.stop], strict=False)
    ]


def _with_user(row: asyncpg.Record) -> Row:
    # The number is text: it has 63 bits, and many readers of JSON keep 53 of a number.
    return to_json(row) | {"user_number": str(row["user_number"])}


def _match(row: asyncpg.Record, partition: int) -> Row:
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

_STORED = "SELECT user_fields, payload, payload_schema FROM reads.transactions WHERE own_id = $1"

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

_MATCHES = (
    "SELECT * FROM reads.transaction_matches WHERE own_id = $2 AND user_number = $1 ORDER BY changeset, transaction_id"
)

_REVIEWS_ABOUT = """
SELECT * FROM reads.reviews WHERE user_number = $1 AND (own_id = $2 OR chosen = $2) ORDER BY changeset, id"""

_REVIEW = "SELECT r.*, i.partition FROM reads.reviews r JOIN reads.items i USING (item_id) WHERE r.id = $1"

_LEDGER_ACCOUNT = "SELECT id, user_number, kind, reference, currency FROM reads.ledger_accounts WHERE id = $1"

_BALANCES = f"{queries.LEDGER_BALANCE} WHERE account = $1 ORDER BY layer"

_BALANCES_OF = (
    f"{queries.LEDGER_BALANCE} WHERE user_number = $1 AND kind = 'bank' AND reference = $2 ORDER BY currency, layer"
)

_REPORTS = """
SELECT version, source, payload, payload_schema, changeset, known_at FROM reads.account_versions
 WHERE item_id = $1 AND account_id = $2 ORDER BY version DESC LIMIT $3"""

_CHANGESET = """
SELECT id, user_number, events, redriven_by FROM reads.changesets WHERE partition = $1 AND source_offset = $2"""
