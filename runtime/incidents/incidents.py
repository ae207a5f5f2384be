"""Incidents: what operators have to know, once each. Open while it lasts, however often it is seen.

An Item whose user has to act (ITEM_LOGIN_REQUIRED and its kin) is none: that is told to the user. Neither is an Item
whose bank is down or whose quota is used up: the bank's or the client's incident says it once for all its Items.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import NamedTuple

import asyncpg
from msgspec import Struct

from runtime.plaid.models import OUTAGE_CODES
from runtime.scheduler.types import CURSOR_LOST, Claimed, Released

SYNC_FAILING, ITEM_QUARANTINED, ITEM_REFUSED, ITEM_GONE = (
    "sync_failing",
    "item_quarantined",
    "item_refused",
    "item_gone",
)
INSTITUTION_DOWN, RATE_LIMITED, TOO_MANY_GONE = "institution_down", "rate_limited", "too_many_gone"
REMOVALS_WITHHELD, WEBHOOKS_MISSED, DEAD_LETTERS = "removals_withheld", "webhooks_missed", "dead_letters"
BALANCE_GAP = "balance_gap"

FAILING_AFTER = 5
"""Failures in a row before a sync counts as failing: the quick attempts are over, what follows takes hours."""
DETAIL_CHARACTERS_MAX = 500
QUIET_S = 15 * 60.0
"""Without another stop for so long a reader is well again: supervisors start it at most 5 minutes apart."""
KEPT_DAYS = 90
"""How long a closed incident is kept: a quarter, so that a report over three months finds all of them."""
PURGED_AT_ONCE_MAX = 10_000
"""Rows that one purge deletes, so that it holds no lock for long; the next one goes on."""


class Kind(NamedTuple):
    """What a kind of incident is called, what its subject is, and what an operator does about it."""

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
"""Each kind's words; also the closed set of values of the metric's label."""

_UNKNOWN = Kind("An incident", "subject", "See `tartan queue`.")

_OF_STOPPED = {"quarantined": ITEM_QUARANTINED, "refused": ITEM_REFUSED, "gone": ITEM_GONE}
_CLIENT = "client"
_SUSPECTED = "too_many_gone"
"""Code of a pass whose Item Plaid called gone, and was not believed."""
_OF_PASS = (SYNC_FAILING, ITEM_REFUSED, ITEM_GONE)
"""What a pass ends. A item_quarantine is ended by its redrive alone: `close_ended` sees that."""
_LIMITED = "RATE_LIMIT_EXCEEDED"


class Incident(Struct, frozen=True):
    """One incident. `alerted`: operators know that it began."""

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
    """What a kind is called, for those too that an older or newer version has written."""
    return KINDS.get(kind, _UNKNOWN)


async def report(connection: asyncpg.Connection, kind: str, subject: str, detail: str) -> None:
    """Open an incident, or count it once more while it is open."""
    await connection.execute(_SEEN, kind, subject, detail[:DETAIL_CHARACTERS_MAX])


async def close(connection: asyncpg.Connection, kind: str, subject: str) -> None:
    """Close an incident, if it is open."""
    await close_all(connection, [kind], subject)


async def close_all(connection: asyncpg.Connection, kinds: Collection[str], subject: str) -> None:
    """Close the incidents of these kinds that a subject has open."""
    await connection.execute(_OVER, list(kinds), subject)


async def record_sync_run(connection: asyncpg.Connection, claimed: Claimed, result: Released) -> None:
    """Open or close what a pass over an Item says of it.

    Idempotence: every call with the same outcome is one sight more of the same incident.
    """
    if (result.error or {}).get("code") == _SUSPECTED:
        await report(connection, TOO_MANY_GONE, _CLIENT, _error_text(result))
    now = _kind_of(claimed, result)
    if now is not None and now != ITEM_QUARANTINED:  # who quarantines an Item opens that, with the item_quarantine
        await report(connection, now, claimed.item_id, _error_text(result))
    if result.stopped is None and (result.outcome == "failed" or result.attempts):
        return  # nothing is over while attempts fail, or wait for a quota
    await close_all(connection, [kind for kind in _OF_PASS if kind != now], claimed.item_id)


async def close_ended(connection: asyncpg.Connection) -> int:
    """Close what is over by what stands in the tables: no pass says so of each. Gives how many.

    Items that have gone on, are unlinked, redriven or erased since; a client none of whose Items is suspected to be
    gone any more; a reader that has not stopped again.
    """
    kinds = (SYNC_FAILING, ITEM_QUARANTINED, ITEM_REFUSED, ITEM_GONE, REMOVALS_WITHHELD)
    rows = await connection.fetch(_SETTLE, *kinds)
    rows += await connection.fetch(_SETTLE_CLIENT, TOO_MANY_GONE, _SUSPECTED)
    rows += await connection.fetch(_SETTLE_QUIET, DEAD_LETTERS, QUIET_S)
    return len(rows)


async def open_incidents(connection: asyncpg.Connection, *, limit: int, tenant: str | None = None) -> list[Incident]:
    """What is open, the youngest first: all, or what a tenant's Items are the subject of."""
    return [Incident(*row) for row in await connection.fetch(_OPEN, tenant, limit)]


async def open_counts(connection: asyncpg.Connection) -> dict[str, int]:
    """How many are open, by kind; kinds without any are absent."""
    return {row["kind"]: row["open"] for row in await connection.fetch(_OPEN_COUNTS)}


async def claim_alerting(connection: asyncpg.Connection) -> bool:
    """Become the one who tells, until the transaction ends; False where another one does."""
    return bool(await connection.fetchval(_CLAIM_ALERTING))


async def unalerted(connection: asyncpg.Connection, limit: int) -> list[Incident]:
    """Beginnings and ends that operators were not told of, in the order in which they happened."""
    return [Incident(*row) for row in await connection.fetch(_UNALERTED, limit)]


async def mark_alerted(connection: asyncpg.Connection, told: Sequence[Incident]) -> None:
    """Note that operators were told of incidents as they were read; an end that came later is still to be told."""
    ended = [one.incident for one in told if one.closed_at is not None]
    await connection.execute(_MARK_ALERTED, [one.incident for one in told], ended)


async def purge(connection: asyncpg.Connection) -> int:
    """Delete what was closed and told long ago. Gives how many rows."""
    rows = await connection.fetch(_PURGE, KEPT_DAYS, PURGED_AT_ONCE_MAX)
    return len(rows)


def _kind_of(claimed: Claimed, result: Released) -> str | None:
    if result.stopped is not None:
        return _OF_STOPPED.get(result.stopped)
    error = result.error or {}
    # A history that was read again is no failure; that it is read again and again is one.
    lost = error.get("code") == CURSOR_LOST and result.attempts > FAILING_AFTER
    if not lost and (result.outcome != "failed" or result.attempts < FAILING_AFTER):
        return None
    its_bank = error.get("code") in OUTAGE_CODES and claimed.institution_id is not None
    told_otherwise = its_bank or error.get("detail") == _LIMITED or error.get("code") == _SUSPECTED
    return None if told_otherwise else SYNC_FAILING


def _error_text(result: Released) -> str:
    error = result.error or {}
    return ": ".join(str(error[name]) for name in ("code", "detail") if error.get(name))


_SEEN = """
    INSERT INTO tartan.incidents AS i (kind, subject, detail, opened_at, last_at)
    VALUES ($1, $2, $3, tartan.clock(), tartan.clock())
    ON CONFLICT (kind, subject) WHERE closed_at IS NULL DO UPDATE
    SET count = i.count + 1, last_at = tartan.clock(), detail = excluded.detail"""

_OVER = """
    UPDATE tartan.incidents SET closed_at = tartan.clock()
    WHERE kind = ANY($1::text[]) AND subject = $2 AND closed_at IS NULL"""

# What a pass writes first: sync_state, then the incident. This reads the one and writes the other, so neither waits.
# A item_quarantine by the projections leaves sync_state as it is: only its redrive ends it.
_SETTLE = """
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

# The look through all Items is made only while such an incident is open, and ends at the first that is suspected.
_SETTLE_CLIENT = """
    UPDATE tartan.incidents i SET closed_at = tartan.clock()
    WHERE i.closed_at IS NULL AND i.kind = $1
      AND NOT EXISTS (SELECT FROM tartan.sync_state s WHERE s.last_error ->> 'code' = $2)
    RETURNING i.incident"""

_SETTLE_QUIET = """
    UPDATE tartan.incidents SET closed_at = tartan.clock()
    WHERE closed_at IS NULL AND kind = $1 AND last_at < tartan.clock() - make_interval(secs => $2)
    RETURNING incident"""

_COLUMNS = "incident, kind, subject, detail, count, opened_at, last_at, closed_at, alerted_at IS NOT NULL AS alerted"

# A tenant reads of a bank's outage where it reads of breakers.
_OPEN = f"""
    SELECT {_COLUMNS} FROM tartan.incidents i
    WHERE closed_at IS NULL AND ($1::text IS NULL
        OR EXISTS (SELECT FROM tartan.sync_state s WHERE s.item_id = i.subject AND s.tenant = $1))
    ORDER BY incident DESC LIMIT $2"""

_OPEN_COUNTS = "SELECT kind, count(*) AS open FROM tartan.incidents WHERE closed_at IS NULL GROUP BY kind"

# One teller at a time keeps the order. It holds no row while a receiver is slow: passes go on counting what they see.
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
