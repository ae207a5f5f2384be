"""Incidents: conditions that an operator has to act on, one open row a kind and subject.

An Item whose user has to act (ITEM_LOGIN_REQUIRED and similar) is no incident: its user is informed. An Item whose
bank is down or whose quota is used up is none either: the bank or the client has one incident for all its Items.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import NamedTuple

import asyncpg
from msgspec import Struct

SYNC_FAILING, ITEM_QUARANTINED, ITEM_REFUSED = "sync_failing", "item_quarantined", "item_refused"
ITEM_GONE, TOO_MANY_GONE = "item_gone", "too_many_gone"
INSTITUTION_DOWN, RATE_LIMITED = "institution_down", "rate_limited"
REMOVALS_WITHHELD, WEBHOOKS_MISSED, DEAD_LETTERS = "removals_withheld", "webhooks_missed", "dead_letters"
BALANCE_GAP = "balance_gap"

DETAIL_CHARACTERS_MAX = 500
QUIET_S = 15 * 60.0
"""A reader that has not stopped for so long works again: supervisors start it at most 5 minutes apart."""
KEPT_DAYS = 90
"""Closed incidents stay for a quarter, so that a report over three months has all of them."""
PURGED_AT_ONCE_MAX = 10_000
"""Rows that one purge deletes, so that it holds no lock for long; the next one goes on."""


class Kind(NamedTuple):
    """A kind of incident for operators: its title, the sort of its subject, and the remedy."""

    title: str
    subject: str
    remedy: str


KINDS: dict[str, Kind] = {
    SYNC_FAILING: Kind(
        "An Item's sync keeps failing",
        "Item",
        "It is tried again by itself, in hours. `tartan items show` has the last errors; where they are no outage of "
        "Plaid's, mend the reason and ask for a sync.",
    ),
    ITEM_QUARANTINED: Kind(
        "An Item is quarantined: one of its records or updates cannot be processed",
        "Item",
        "See the reason with `tartan dead-letters list`; deploy the mended code, then `tartan items redrive`.",
    ),
    ITEM_REFUSED: Kind(
        "Plaid refuses an Item's requests for good",
        "Item",
        "`tartan items show` says whether the product, the bank or the request is the reason; ask for a sync once it "
        "is mended, or unlink the Item.",
    ),
    ITEM_GONE: Kind(
        "An Item is gone at Plaid",
        "Item",
        "Nothing was erased. If it was not removed on purpose, check that keys and environment are the Item's; "
        "otherwise ask the user to link again, and unlink this one.",
    ),
    INSTITUTION_DOWN: Kind(
        "A bank does not answer",
        "institution",
        "Nothing: all its Items wait and one of them tries. Plaid's status page tells of longer outages.",
    ),
    RATE_LIMITED: Kind(
        "Plaid counts more requests than this installation does",
        "endpoint",
        "Requests wait by themselves. Set TARTAN_PLAID_LIMITS to the plan's quotas, and look for others that use the "
        "same client id.",
    ),
    TOO_MANY_GONE: Kind(
        "Plaid calls many Items gone at once",
        "client",
        "Workers hold back and mark none of them. Check that client id, secret and environment are this database's.",
    ),
    REMOVALS_WITHHELD: Kind(
        "A history that was read again would remove more transactions than is safe",
        "Item",
        "Compare with the bank, then `tartan items approve` or `tartan items reject`; until then nothing is removed.",
    ),
    WEBHOOKS_MISSED: Kind(
        "Webhooks that Plaid sent did not arrive",
        "client",
        "The Items were synced all the same. Check the webhook address, its certificate, and what ingest refuses.",
    ),
    DEAD_LETTERS: Kind(
        "Too many records cannot be processed",
        "reader",
        "The reader stopped to keep the topic whole. Roll the last deploy back, or mend it; then `tartan dead-letters "
        "list` and redrive. Where the data is at fault, raise TARTAN_DEAD_LETTERS_MAX until it has read past.",
    ),
    BALANCE_GAP: Kind(
        "An account does not tie out with its bank, and no repair has helped",
        "account",
        "`tartan reconcile` with the Item's id shows gap, cause and evidence. Rows that the bank does not tell are its "
        "to mend; of an Item that is there twice unlink one; `unknown` is a fault of Tartan's own.",
    ),
}
"""The kinds by name; also the closed set of values of the metric's label."""

_UNKNOWN = Kind("An incident", "subject", "See `tartan queue`.")


class Incident(Struct, frozen=True):
    """One incident. `alerted`: the message of its begin was sent to operators."""

    incident: int
    kind: str
    subject: str
    detail: str
    count: int
    opened_at: datetime
    last_at: datetime
    closed_at: datetime | None
    alerted: bool


def describe(kind: str) -> Kind:
    """Return the description of a kind, also of one that only another version of this code has."""
    return KINDS.get(kind, _UNKNOWN)


async def report(connection: asyncpg.Connection, kind: str, subject: str, detail: str) -> None:
    """Open an incident, or count it once more while it is open."""
    await connection.execute(_REPORT, kind, subject, detail[:DETAIL_CHARACTERS_MAX])


async def close(connection: asyncpg.Connection, kind: str, subject: str) -> None:
    """Close an incident, if it is open."""
    await close_all(connection, [kind], subject)


async def close_all(connection: asyncpg.Connection, kinds: Collection[str], subject: str) -> None:
    """Close the open incidents of these kinds of a subject."""
    await connection.execute(_CLOSE, list(kinds), subject)


async def close_ended(connection: asyncpg.Connection) -> int:
    """Close incidents whose condition has ended according to the tables, and return their number.

    These are Items that have synced, or were unlinked, redriven or erased since; the client, once no Item is suspected
    to be gone; a reader that has not stopped again.
    """
    kinds = (SYNC_FAILING, ITEM_QUARANTINED, ITEM_REFUSED, ITEM_GONE, REMOVALS_WITHHELD)
    rows = await connection.fetch(_CLOSE_ITEMS, *kinds)
    rows += await connection.fetch(_CLOSE_CLIENT, TOO_MANY_GONE)
    rows += await connection.fetch(_CLOSE_QUIET, DEAD_LETTERS, QUIET_S)
    return len(rows)


async def open_incidents(connection: asyncpg.Connection, *, limit: int, tenant: str | None = None) -> list[Incident]:
    """Return open incidents, the youngest first: all, or those whose subject is an Item of a tenant."""
    return [Incident(*row) for row in await connection.fetch(_OPEN, tenant, limit)]


async def open_counts(connection: asyncpg.Connection) -> dict[str, int]:
    """Count open incidents by kind; kinds without any are absent."""
    return {row["kind"]: row["open"] for row in await connection.fetch(_OPEN_COUNTS)}


async def claim_alerting(connection: asyncpg.Connection) -> bool:
    """Become the one process that sends alerts, until the transaction ends; False where another one is."""
    return bool(await connection.fetchval(_CLAIM_ALERTING))


async def unalerted(connection: asyncpg.Connection, limit: int) -> list[Incident]:
    """Return incidents whose begin or end was not sent to operators yet, in the order of those times."""
    return [Incident(*row) for row in await connection.fetch(_UNALERTED, limit)]


async def mark_alerted(connection: asyncpg.Connection, incidents: Sequence[Incident]) -> None:
    """Note that incidents were sent as they were read; an end that came later is still to be sent."""
    ended = [incident.incident for incident in incidents if incident.closed_at is not None]
    await connection.execute(_MARK_ALERTED, [incident.incident for incident in incidents], ended)


async def purge(connection: asyncpg.Connection) -> int:
    """Delete incidents whose end was sent and that closed KEPT_DAYS ago; return the number of rows."""
    return len(await connection.fetch(_PURGE, KEPT_DAYS, PURGED_AT_ONCE_MAX))


_REPORT = """
    INSERT INTO tartan.incidents AS i (kind, subject, detail, opened_at, last_at)
    VALUES ($1, $2, $3, tartan.clock(), tartan.clock())
    ON CONFLICT (kind, subject) WHERE closed_at IS NULL DO UPDATE
    SET count = i.count + 1, last_at = tartan.clock(), detail = excluded.detail"""

_CLOSE = """
    UPDATE tartan.incidents SET closed_at = tartan.clock()
    WHERE kind = ANY($1::text[]) AND subject = $2 AND closed_at IS NULL"""

# A release writes sync_state, then the incident. This reads the first and writes the second, so neither waits.
# A quarantine by the projections leaves sync_state as it is, so `quarantines` is read as well.
_CLOSE_ITEMS = """
    UPDATE tartan.incidents i SET closed_at = tartan.clock()
    WHERE i.closed_at IS NULL AND i.kind IN ($1, $2, $3, $4, $5) AND NOT EXISTS (
        SELECT FROM tartan.sync_state s
        WHERE s.item_id = i.subject AND s.stopped IS DISTINCT FROM 'unlinked' AND CASE i.kind
            WHEN $1 THEN s.stopped IS NULL AND s.attempts > 0
            WHEN $2 THEN s.stopped = 'quarantined' OR EXISTS (
                SELECT FROM tartan.quarantines k WHERE k.item_id = s.item_id AND k.redrive_offset IS NULL)
            WHEN $3 THEN s.stopped = 'refused'
            WHEN $4 THEN s.stopped = 'gone'
            ELSE true END)
    RETURNING i.incident"""

# All Items are read only while such an incident is open, up to the first that is suspected to be gone: its last error
# has the name of the kind as code.
_CLOSE_CLIENT = """
    UPDATE tartan.incidents i SET closed_at = tartan.clock()
    WHERE i.closed_at IS NULL AND i.kind = $1
      AND NOT EXISTS (SELECT FROM tartan.sync_state s WHERE s.last_error ->> 'code' = i.kind)
    RETURNING i.incident"""

_CLOSE_QUIET = """
    UPDATE tartan.incidents SET closed_at = tartan.clock()
    WHERE closed_at IS NULL AND kind = $1 AND last_at < tartan.clock() - make_interval(secs => $2)
    RETURNING incident"""

_COLUMNS = "incident, kind, subject, detail, count, opened_at, last_at, closed_at, alerted_at IS NOT NULL AS alerted"

# A tenant reads of a bank's outage in the list of breakers.
_OPEN = f"""
    SELECT {_COLUMNS} FROM tartan.incidents i
    WHERE closed_at IS NULL AND ($1::text IS NULL
        OR EXISTS (SELECT FROM tartan.sync_state s WHERE s.item_id = i.subject AND s.tenant = $1))
    ORDER BY incident DESC LIMIT $2"""

_OPEN_COUNTS = "SELECT kind, count(*) AS open FROM tartan.incidents WHERE closed_at IS NULL GROUP BY kind"

# One sender at a time keeps the order. It holds no row while a receiver is slow, so sync runs go on counting.
_CLAIM_ALERTING = "SELECT pg_try_advisory_xact_lock(hashtextextended('tartan.incidents.telling', 0))"

_UNALERTED = f"""
    SELECT {_COLUMNS} FROM tartan.incidents
    WHERE alerted_at IS NULL OR (closed_at IS NOT NULL AND end_alerted_at IS NULL)
    ORDER BY CASE WHEN alerted_at IS NULL THEN opened_at ELSE closed_at END, incident LIMIT $1"""

_MARK_ALERTED = """
    UPDATE tartan.incidents
    SET alerted_at = coalesce(alerted_at, tartan.clock()),
        end_alerted_at = CASE WHEN incident = ANY($2::bigint[]) THEN tartan.clock() ELSE end_alerted_at END
    WHERE incident = ANY($1::bigint[])"""

_PURGE = """
    DELETE FROM tartan.incidents WHERE incident IN (
        SELECT incident FROM tartan.incidents
        WHERE closed_at < tartan.clock() - make_interval(days => $1) AND end_alerted_at IS NOT NULL LIMIT $2)
    RETURNING incident"""
