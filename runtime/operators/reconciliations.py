"""Records of reconciliation: the last check of each account, and its discrepancies for KEPT_DAYS.

They are operational: part of no digest, deleted with the account, written anew by the next check.
Locks: an account's row of `reconciliations`, then sync_state, then incidents.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

import asyncpg
import msgspec

from runtime.incidents import incidents
from runtime.scheduler.enqueue import CHANNEL
from runtime.scheduler.types import Lane
from schemas.log.records import Cause
from schemas.money import decimal_text

KEPT_DAYS = 90
"""A resolved discrepancy stays for a quarter, as an incident does: a report over it has all of them."""
PURGED_AT_ONCE_MAX = 10_000
HISTORY_MAX = 200
"""Discrepancies in one answer: an account rarely has one a week."""
BY = "reconciliation"
"""`by` in the cause of a sync that a repair requested."""


class Key(NamedTuple):
    """An account. Plaid's account ids are scoped to the Item."""

    item_id: str
    account_id: str


class Checked(NamedTuple):
    """A check of an account. Units: amounts in major units with the ledger's sign."""

    item_id: str
    account_id: str
    user: int
    state: str
    why: str | None
    currency: str | None
    ledger: Decimal | None
    bank: Decimal | None
    gap: Decimal
    source: str | None
    tied_at: int | None


class Gap(NamedTuple):
    """A gap between ledger and bank as a check measured it, with its cause."""

    cause: str
    against: str
    currency: str | None
    ledger: Decimal | None
    bank: Decimal | None
    gap: Decimal
    evidence: Mapping[str, Any]
    repair: str
    outcome: str | None
    checks_after: int
    started: bool


class Open(NamedTuple):
    """An open discrepancy. `repair_done`: the Item was synced since the repair began, and nothing of it is left."""

    discrepancy: int
    cause: str
    gap: Decimal
    cause_at: datetime
    gap_at: datetime
    repair: str
    repaired_at: datetime | None
    checks_after: int
    outcome: str | None
    repair_done: bool


class AccountFilter(NamedTuple):
    """A choice of accounts; None means any. `user_id` is the application's own id."""

    tenant: str | None = None
    user_id: str | None = None
    item_id: str | None = None
    account_id: str | None = None


class State(NamedTuple):
    """The state of an account's reconciliation. `compared_at`: when a full resync of its Item was last requested."""

    now: datetime
    open: Open | None
    compared_at: datetime | None


async def enrol(connection: asyncpg.Connection, *, interval_s: float, accounts_max: int) -> int:
    """Schedule the first checks of new accounts, spread over the interval; return the number of accounts."""
    return len(await connection.fetch(_ENROL, interval_s, accounts_max))


async def claim(connection: asyncpg.Connection, *, interval_s: float, accounts_max: int) -> list[Key]:
    """Claim accounts whose check is due, the longest due first; their next check is an interval from now.

    Several processes share the work: each account is given to one of them.
    """
    return [Key(*row) for row in await connection.fetch(_CLAIM, interval_s, accounts_max)]


async def list_accounts(
    connection: asyncpg.Connection, which: AccountFilter, *, after: Key | None = None, limit: int
) -> list[Key]:
    """Return the accounts of a filter that readers see, in the order of their keys, behind `after`.

    An account without a user has no known tenant, so it is left out where the filter names one.
    """
    return [Key(*row) for row in await connection.fetch(_LIST, *which, *(after or Key("", "")), limit)]


async def record_checks(connection: asyncpg.Connection, checks: Sequence[Checked]) -> None:
    """Write the last check of accounts."""
    if checks:
        ordered = sorted(checks, key=lambda check: (check.item_id, check.account_id))
        await connection.execute(_RECORD_CHECKS, *(list(column) for column in zip(*ordered, strict=True)))


async def with_open_discrepancy(connection: asyncpg.Connection, keys: Sequence[Key]) -> set[Key]:
    """Return those of the accounts that have an open discrepancy."""
    item_ids, account_ids = [key.item_id for key in keys], [key.account_id for key in keys]
    return {Key(*row) for row in await connection.fetch(_WITH_OPEN_DISCREPANCY, item_ids, account_ids)}


@asynccontextmanager
async def account(connection: asyncpg.Connection, checked: Checked) -> AsyncIterator[State]:
    """Open a transaction over an account's records: write the check, and keep other checkers of it waiting."""
    async with connection.transaction():
        await record_checks(connection, [checked])
        row = await connection.fetchrow(_STATE, checked.item_id, checked.account_id)
        assert row is not None
        now, compared_at, *columns = row.values()
        yield State(now, None if columns[0] is None else Open(*columns), compared_at)


async def begin(connection: asyncpg.Connection, checked: Checked, gap: Gap) -> None:
    """Open a discrepancy."""
    await connection.execute(_BEGIN, checked.item_id, checked.account_id, checked.user, *_values(gap))


async def update(connection: asyncpg.Connection, discrepancy: int, gap: Gap) -> None:
    """Count a discrepancy once more, with its present values."""
    await connection.execute(_UPDATE, discrepancy, *_values(gap))


async def end(connection: asyncpg.Connection, discrepancy: int, outcome: str) -> None:
    """Close a discrepancy with its outcome."""
    await connection.execute(_END, discrepancy, outcome)


async def request_sync(connection: asyncpg.Connection, item_id: str, *, whole: bool) -> bool:
    """Mark an Item, with its accounts; `whole` requests a full resync that compares its whole history.

    False where the Item stopped or is unlinked, so nothing is asked about it.
    """
    cause = msgspec.json.encode(Cause("repair", by=BY)).decode()
    marked: bool | None = await connection.fetchval(_REQUEST_SYNC, item_id, Lane.SCHEDULE, cause, whole)
    if marked:
        await connection.execute(f"NOTIFY {CHANNEL}")
    return bool(marked)


async def report_gap(connection: asyncpg.Connection, key: Key, detail: str) -> None:
    """Open the incident of an account's gap, or count it once more."""
    await incidents.report(connection, incidents.BALANCE_GAP, _subject(key), detail)


async def close_gap(connection: asyncpg.Connection, key: Key) -> None:
    """Close the incident of an account's gap, if it is open."""
    await incidents.close(connection, incidents.BALANCE_GAP, _subject(key))


async def forget(connection: asyncpg.Connection, keys: Sequence[Key]) -> None:
    """Delete the records of accounts that no longer exist, and close their incidents."""
    async with connection.transaction():
        for key in sorted(keys):
            await connection.execute(_FORGET, *key)
            await close_gap(connection, key)


async def last_check(connection: asyncpg.Connection, key: Key) -> dict[str, Any] | None:
    """Return the last check of an account; None where there was none."""
    row = await connection.fetchrow(_LAST, *key)
    return None if row is None else _json_row(row)


async def history(connection: asyncpg.Connection, key: Key, *, limit: int = HISTORY_MAX) -> list[dict[str, Any]]:
    """Return the discrepancies of an account, newest first."""
    return [_json_row(row) for row in await connection.fetch(_HISTORY, *key, min(limit, HISTORY_MAX))]


async def open_counts(connection: asyncpg.Connection) -> dict[str, int]:
    """Count open discrepancies by cause; causes without any are absent."""
    return {row["cause"]: row["open"] for row in await connection.fetch(_OPEN_COUNTS)}


async def purge(connection: asyncpg.Connection) -> int:
    """Delete discrepancies that were resolved KEPT_DAYS ago; return the number of rows."""
    return len(await connection.fetch(_PURGE, KEPT_DAYS, PURGED_AT_ONCE_MAX))


def _subject(key: Key) -> str:
    return f"{key.item_id}/{key.account_id}"


def _values(gap: Gap) -> tuple[Any, ...]:
    return gap._replace(evidence=msgspec.json.encode(gap.evidence).decode())  # type: ignore[arg-type]


def _json_row(row: asyncpg.Record) -> dict[str, Any]:
    """Return a row for JSON, with amounts as plain decimal text."""
    values = {name: decimal_text(value) if isinstance(value, Decimal) else value for name, value in row.items()}
    if values.get("evidence") is not None:
        values["evidence"] = msgspec.json.decode(values["evidence"])
    return values


# hashtext spreads the accounts evenly and gives one account the same place each time.
_ENROL = """
    INSERT INTO tartan.reconciliations (item_id, account_id, user_number, next_at)
    SELECT a.item_id, a.account_id, a.user_number,
        tartan.clock() + make_interval(secs => $1 * (hashtext(a.item_id || a.account_id) & 1023) / 1024.0)
    FROM reads.accounts a
    WHERE NOT EXISTS (
        SELECT FROM tartan.reconciliations r WHERE r.item_id = a.item_id AND r.account_id = a.account_id)
    LIMIT $2
    ON CONFLICT DO NOTHING RETURNING 1"""

_CLAIM = """
    UPDATE tartan.reconciliations r SET next_at = tartan.clock() + make_interval(secs => $1)
    FROM (SELECT item_id, account_id FROM tartan.reconciliations WHERE next_at <= tartan.clock()
          ORDER BY next_at LIMIT $2 FOR UPDATE SKIP LOCKED) d
    WHERE r.item_id = d.item_id AND r.account_id = d.account_id
    RETURNING r.item_id, r.account_id"""

_LIST = """
    SELECT a.item_id, a.account_id FROM reads.accounts a LEFT JOIN tartan.users u USING (user_number)
    WHERE ($1::text IS NULL OR u.tenant = $1) AND ($2::text IS NULL OR u.user_id = $2)
      AND ($3::text IS NULL OR a.item_id = $3) AND ($4::text IS NULL OR a.account_id = $4)
      AND (a.item_id, a.account_id) > ($5, $6)
    ORDER BY a.item_id, a.account_id LIMIT $7"""

# Rows in the order given, which is that of the key: two that write many at once wait for each other.
_RECORD_CHECKS = """
    INSERT INTO tartan.reconciliations AS r (item_id, account_id, user_number, next_at, checked_at, state, why,
        currency, ledger, bank, gap, source, tied_at, tied_out_at)
    SELECT n.item_id, n.account_id, n.user_number, tartan.clock(), tartan.clock(), n.state, n.why, n.currency,
        n.ledger, n.bank, n.gap, n.source, n.tied_at, CASE WHEN n.state = 'tied_out' THEN tartan.clock() END
    FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::numeric[],
                $8::numeric[], $9::numeric[], $10::text[], $11::bigint[])
        AS n (item_id, account_id, user_number, state, why, currency, ledger, bank, gap, source, tied_at)
    ON CONFLICT (item_id, account_id) DO UPDATE
    SET checked_at = excluded.checked_at, state = excluded.state, why = excluded.why, currency = excluded.currency,
        ledger = excluded.ledger, bank = excluded.bank, gap = excluded.gap, source = excluded.source,
        tied_at = coalesce(excluded.tied_at, r.tied_at), tied_out_at = coalesce(excluded.tied_out_at, r.tied_out_at)"""

_WITH_OPEN_DISCREPANCY = """
    SELECT d.item_id, d.account_id FROM unnest($1::text[], $2::text[]) AS k (item_id, account_id)
    JOIN tartan.discrepancies d USING (item_id, account_id) WHERE d.resolved_at IS NULL"""

# A repair that was not started had nothing to do: the last one of the Item still counts.
_STATE = """
    SELECT tartan.clock() AS now,
        (SELECT max(c.repaired_at) FROM tartan.discrepancies c WHERE c.item_id = k.item_id AND c.repair = 'compare')
            AS compared_at,
        d.discrepancy, d.cause, d.gap, d.cause_at, d.gap_at, d.repair, d.repaired_at, d.checks_after, d.outcome,
        d.repaired_at IS NULL OR coalesce(s.last_synced_at > d.repaired_at AND NOT s.history_incomplete, true)
    FROM (SELECT $1::text AS item_id, $2::text AS account_id) k
    LEFT JOIN tartan.discrepancies d ON d.item_id = k.item_id AND d.account_id = k.account_id AND d.resolved_at IS NULL
    LEFT JOIN tartan.sync_state s ON s.item_id = k.item_id"""

_BEGIN = """
    INSERT INTO tartan.discrepancies (item_id, account_id, user_number, cause, against, currency, ledger, bank, gap,
        evidence, repair, outcome, checks_after, repaired_at, opened_at, cause_at, gap_at, last_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::text::jsonb, $11, $12, $13,
        CASE WHEN $14::boolean THEN tartan.clock() END, tartan.clock(), tartan.clock(), tartan.clock(),
        tartan.clock())"""

_UPDATE = """
    UPDATE tartan.discrepancies
    SET cause = $2, against = $3, currency = $4, ledger = $5, bank = $6, gap = $7, evidence = $8::text::jsonb,
        repair = $9, outcome = $10, checks_after = $11,
        repaired_at = CASE WHEN $12::boolean THEN tartan.clock() WHEN repair = $9 THEN repaired_at END,
        cause_at = CASE WHEN cause = $2 THEN cause_at ELSE tartan.clock() END,
        gap_at = CASE WHEN gap = $7 THEN gap_at ELSE tartan.clock() END,
        last_at = tartan.clock(), count = count + 1
    WHERE discrepancy = $1"""

_END = """
    UPDATE tartan.discrepancies SET outcome = $2, resolved_at = tartan.clock() WHERE discrepancy = $1"""

# A run that starts without a cursor reports at its release whether an account was missing. A run under way does not, so
# history_incomplete outlasts it.
_REQUEST_SYNC = """
    UPDATE tartan.sync_state
    SET generation = generation + 1, due_at = least(due_at, tartan.clock()), cause = $3::text::jsonb,
        lane = CASE WHEN due_at IS NULL THEN $2 ELSE least(lane, $2) END, accounts_wanted = true,
        history_incomplete = history_incomplete OR $4
    WHERE item_id = $1 AND stopped IS NULL
    RETURNING true"""

_FORGET = """
    WITH gone AS (DELETE FROM tartan.reconciliations WHERE item_id = $1 AND account_id = $2)
    DELETE FROM tartan.discrepancies WHERE item_id = $1 AND account_id = $2"""

_LAST = """
    SELECT checked_at, next_at, state, CASE WHEN state = 'gap' THEN why END AS cause,
        CASE WHEN state <> 'gap' THEN why END AS reason, currency, ledger, bank, gap, source, tied_out_at
    FROM tartan.reconciliations WHERE item_id = $1 AND account_id = $2 AND checked_at IS NOT NULL"""

_HISTORY = """
    SELECT cause, against, currency, ledger, bank, gap, evidence, opened_at, last_at, count, repair,
        repaired_at, outcome, resolved_at
    FROM tartan.discrepancies WHERE item_id = $1 AND account_id = $2 ORDER BY discrepancy DESC LIMIT $3"""

_OPEN_COUNTS = """
    SELECT cause, count(*) AS open FROM tartan.discrepancies WHERE resolved_at IS NULL GROUP BY cause"""

_PURGE = """
    DELETE FROM tartan.discrepancies WHERE discrepancy IN (
        SELECT discrepancy FROM tartan.discrepancies
        WHERE resolved_at < tartan.clock() - make_interval(days => $1) LIMIT $2)
    RETURNING discrepancy"""
