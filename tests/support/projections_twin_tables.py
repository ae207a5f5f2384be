"""What Postgres and the memory must have alike, as the same tuples on both sides."""

import hashlib
import json
from typing import Any

import asyncpg

from sandbox.simulation.memory.projection_tables import MemoryProjections
from schemas.times import to_micros

Tables = dict[str, list[tuple[Any, ...]]]


def of_memory(memory: MemoryProjections) -> Tables:
    """The memory's tables."""
    return _sorted(
        {
            "transactions": [
                (
                    row.own_id,
                    row.item_id,
                    row.transaction_id,
                    row.own_id_inherited,
                    row.version,
                    row.transfers,
                    row.first_changeset,
                    row.last_changeset,
                    row.known_at,
                    row.enriched_at,
                    row.removed_at,
                    row.missing_since_offset,
                    _plain(row.user_fields),
                    len(row.postings),
                    row.review,
                    row.payload,
                )
                for row in memory.rows.values()
            ],
            "transfers": [
                (one.own_id, one.number, one.debit, one.credit, one.amount, one.layer, one.reverses, one.context.offset)
                for one in memory.transfers
            ],
            "balances": [(*key, *value) for key, value in memory.balances.items()],
            "accounts": [
                (
                    row.item_id,
                    row.account_id,
                    row.cached_payload,
                    row.realtime_payload,
                    row.source,
                    row.version,
                    row.known_at,
                    row.opened,
                    row.opening_transfers,
                    *(row.continues or (None, None)),
                    *(row.continued_by or (None, None)),
                )
                for row in memory.accounts.values()
            ],
            "items": [
                (
                    row.item_id,
                    row.gate.head,
                    row.gate.unlinked,
                    row.transaction_rows,
                    row.missing_rows,
                    row.missing_changeset_id,
                    row.has_linked_items,
                    _plain(json.dumps(row.waiting_edits)),
                )
                for row in memory.items.values()
            ],
            "versions": [
                (
                    row.own_id,
                    row.version,
                    row.item_id,
                    row.transaction_id,
                    row.payload,
                    _plain(row.user_fields),
                    row.removed_at,
                    row.review,
                    row.last_changeset,
                    until_changeset,
                )
                for row, until_changeset, _ in memory.versions
            ],
            "account_versions": [
                (one.item_id, one.account_id, one.version, one.source, one.payload, one.changeset)
                for one in memory.account_versions
            ],
            "links": [
                (one.item_id, one.transaction_id, one.own_id, one.rule, one.score, _plain(one.evidence), one.changeset)
                for one in memory.links.values()
            ],
            "reviews": [
                (
                    one.id,
                    one.item_id,
                    one.own_id,
                    _plain(one.candidates),
                    one.state,
                    one.chosen,
                    one.changeset,
                    one.decided,
                )
                for one in memory.reviews.values()
            ],
            "changesets": [
                (
                    one.context.offset,
                    hashlib.sha256(one.block).digest(),
                    _plain(json.dumps(one.not_effective)),
                    one.redriven_by,
                )
                for one in memory.folded
            ],
            "quarantines": [(item, *one) for item, quarantines in memory.quarantined.items() for one in quarantines],
        }
    )


async def of_postgres(connection: asyncpg.Connection) -> Tables:
    """The tables of the database."""
    return _sorted(
        {
            name: [tuple(_value(one) for one in row) for row in await connection.fetch(query)]
            for name, query in _QUERIES.items()
        }
    )


def _sorted(tables: Tables) -> Tables:
    return {name: sorted(rows, key=repr) for name, rows in tables.items()}


def _plain(text: str | None) -> str | None:
    """JSON that Postgres and Python write alike."""
    return None if text is None else json.dumps(json.loads(text), sort_keys=True)


def _value(value: Any) -> Any:
    if hasattr(value, "tzinfo"):
        return to_micros(value)
    if isinstance(value, str) and value[:1] in ("{", "["):
        return _plain(value)
    return int(value) if hasattr(value, "as_tuple") else value


_QUERIES = {
    "transactions": """
        SELECT own_id, item_id, transaction_id, own_id_inherited, version, transfers, first_changeset, last_changeset, known_at,
               enriched_at, removed_at, missing_since_offset, user_fields, active_transfers, review, payload
          FROM projection.transactions""",  # noqa: E501
    "transfers": """SELECT own_id, number, debit, credit, amount, layer, reverses, changeset
                      FROM projection.ledger_transfers""",
    "balances": "SELECT account, layer, debits, credits FROM projection.ledger_balances",
    "accounts": """
        SELECT item_id, account_id, cached_payload, realtime_payload, source, version, known_at, opened, opening_transfers,
               continues_item, continues_account, continued_by_item, continued_by_account FROM projection.accounts""",  # noqa: E501
    "items": """
        SELECT item_id, head, unlinked, transaction_rows, missing_rows, missing_changeset_id, has_linked_items,
               coalesce(waiting_edits, '{}') FROM projection.items""",
    "versions": """
        SELECT own_id, version, item_id, transaction_id, payload, user_fields, removed_at, review, changeset,
               until_changeset FROM projection.transaction_versions""",
    "account_versions": """SELECT item_id, account_id, version, source, payload, changeset
                             FROM projection.account_versions""",
    "links": """SELECT item_id, transaction_id, own_id, rule, score, evidence, changeset
                  FROM projection.transaction_matches""",
    "reviews": """SELECT id, item_id, own_id, candidates, state, chosen, changeset, decided
                    FROM projection.reviews""",
    "changesets": "SELECT source_offset, digest, not_effective, redriven_by FROM projection.changesets",
    "quarantines": "SELECT item_id, first_offset, redrive_offset FROM tartan.quarantines",
}
"""Each in the order of the memory's tuples."""
