"""Inputs of a reconciliation: read accounts, ledger and rows at one moment, and more of accounts with a gap. Shell.

It reads the tables and not the views: their quotients keep 16 digits, and a gap is exact.
"""

import datetime
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple

import asyncpg

from projections.model.book import BANK, PENDING, POSTED
from projections.reconcile.tie_out import CACHED, EXACT, Details, DuplicateAccount, Facts, Layers, Line, Report, Verdict
from projections.store.tables import SCHEMA
from runtime.operators.reconciliations import Key
from schemas.encoding import codec
from schemas.ids import ledger_account_id, opening_id
from schemas.log.records import Account
from schemas.times import to_micros

LINES_MAX = 500
"""Rows of an account that may explain its gap: those of some months."""
DUPLICATE_ROWS_MAX = 2_000


class Loaded(NamedTuple):
    """Facts, users and positions by account; a position is the next offset of the user's partition."""

    facts: dict[Key, Facts]
    users: dict[Key, int]
    positions: dict[Key, int]
    missing: list[Key]


async def load(connection: asyncpg.Connection, keys: Sequence[Key]) -> Loaded:
    """Read the facts of accounts; call it in a transaction of one snapshot. `missing` accounts do not exist."""
    rows = await connection.fetch(_ACCOUNTS, [key.item_id for key in keys], [key.account_id for key in keys])
    accounts = {Key(row["item_id"], row["account_id"]): row for row in rows}
    users = {key: int(row["user_number"]) for key, row in accounts.items()}
    numbers = sorted(set(users.values()))
    ledger = await _ledger(connection, numbers)
    sums = await _sums(connection, numbers)
    openings = await _openings(connection, accounts)
    facts = {
        key: _facts(row, ledger.get((users[key], key.account_id), {}), sums.get(key, {}), openings.get(key, {}))
        for key, row in accounts.items()
    }
    positions = {key: row["position"] or 0 for key, row in accounts.items()}
    return Loaded(facts, users, positions, [key for key in keys if key not in accounts])


async def load_details(connection: asyncpg.Connection, facts: Facts, verdict: Verdict, user: int) -> Details:
    """Read the rows and sums that may explain an account's gap, in the same transaction."""
    report, opened = verdict.report, facts.opened or 0
    assert verdict.currency is not None
    since = max(facts.tied_at or 0, opened + 1)
    bank = ledger_account_id(user, BANK, facts.account_id, verdict.currency)
    lines = await connection.fetch(_LINES, user, facts.item_id, facts.account_id, since, LINES_MAX)
    # An opening counts from before every date: of it nothing is taken back.
    posted_from = max(report.changeset if report else 0, opened)
    moved = await connection.fetchrow(_MOVED, user, bank, posted_from, opened)
    scale = await connection.fetchval(f"SELECT scale FROM {SCHEMA}.ledger_accounts WHERE id = $1", bank)
    assert moved is not None
    now = await connection.fetchval("SELECT tartan.clock()")
    layers = facts.ledger.get(verdict.currency, Layers())
    posted_since, pending_since = (_amount(moved[layer], scale or 0) for layer in (POSTED, PENDING))
    return Details(
        lines=tuple(_line(row) for row in lines),
        posted_then=EXACT.subtract(layers.posted, posted_since),
        pending_at_opening=EXACT.subtract(layers.pending, pending_since),
        duplicates=await _duplicates(connection, facts, user, since),
        now=to_micros(now) or 0,
    )


async def _ledger(connection: asyncpg.Connection, users: Sequence[int]) -> dict[tuple[int, str], dict[str, Layers]]:
    """Return the layers of each currency by user and account."""
    ledger: dict[tuple[int, str], dict[str, Layers]] = {}
    for row in await connection.fetch(_LEDGER, users):
        currencies = ledger.setdefault((row["user_number"], row["reference"]), {})
        layers = currencies.get(row["currency"], Layers())
        currencies[row["currency"]] = layers._replace(**{row["layer"]: _amount(row["balance"], row["scale"])})
    return ledger


async def _sums(connection: asyncpg.Connection, users: Sequence[int]) -> dict[Key, dict[str, Layers]]:
    """Return the sums of live rows by account and currency; an account without any row is absent."""
    sums: dict[Key, dict[str, Layers]] = {}
    for row in await connection.fetch(_SUMS, users):
        currencies = sums.setdefault(Key(row["item_id"], row["account_id"]), {})
        layers = currencies.get(row["currency"], Layers())
        layer = PENDING if row["pending"] else POSTED
        amount = EXACT.add(getattr(layers, layer), _amount(row["value"] or Decimal(0), row["amount_scale"]))
        currencies[row["currency"]] = layers._replace(**{layer: amount})
    return sums


async def _openings(
    connection: asyncpg.Connection, accounts: Mapping[Key, asyncpg.Record]
) -> dict[Key, dict[str, Decimal]]:
    """Return the sum of opening transfers by account and currency."""
    opened = {opening_id(row["user_number"], *key): key for key, row in accounts.items() if row["opened"] is not None}
    openings: dict[Key, dict[str, Decimal]] = {}
    for row in await connection.fetch(_OPENINGS, list(opened)):
        key = opened[row["own_id"]]
        user = accounts[key]["user_number"]
        if row["account"] == ledger_account_id(user, BANK, key.account_id, row["currency"]):
            currencies = openings.setdefault(key, {})
            currencies[row["currency"]] = _amount(row["amount"], row["scale"])
    return openings


async def _duplicates(
    connection: asyncpg.Connection, facts: Facts, user: int, since: int
) -> tuple[DuplicateAccount, ...]:
    accounts = await connection.fetch(_DUPLICATES, user, facts.item_id, facts.account_id)
    if not accounts:
        return ()
    items, ids = ([row[name] for row in accounts] for name in ("item_id", "account_id"))
    rows: dict[Key, set[tuple[datetime.date, Decimal]]] = {Key(*key): set() for key in zip(items, ids, strict=True)}
    for row in await connection.fetch(_DUPLICATE_ROWS, user, items, ids, since, DUPLICATE_ROWS_MAX):
        amount = _amount(Decimal(row["amount_value"]), row["amount_scale"])
        rows[Key(row["item_id"], row["account_id"])].add((row["date"], amount))
    return tuple(
        DuplicateAccount(*key, row["linked"], frozenset(rows[key])) for key, row in zip(rows, accounts, strict=True)
    )


def _facts(
    row: asyncpg.Record, ledger: Mapping[str, Layers], sums: Mapping[str, Layers], openings: Mapping[str, Decimal]
) -> Facts:
    return Facts(
        item_id=row["item_id"],
        account_id=row["account_id"],
        type=row["type"],
        reports=tuple(_reports(row)),
        ledger=ledger,
        openings=openings,
        rows=sums,
        opened=row["opened"],
        is_continued=row["continued_by_item"] is not None,
        is_unlinked=row["unlinked"],
        has_rows=bool(sums),
        history_status=row["history_status"],
        history_incomplete=row["history_incomplete"],
        missing_rows=row["missing_rows"],
        last_sync_at=max(to_micros(row["last_sync_at"]) or 0, to_micros(row["looked_at"]) or 0),
        is_behind=row["is_behind"],
        tied_at=row["tied_at"],
    )


def _reports(row: asyncpg.Record) -> Iterable[Report]:
    """Return the balances of both sources that have an amount."""
    for source in (CACHED, "realtime"):
        payload, known_at = row[f"{source}_payload"], to_micros(row[f"{source}_at"])
        if payload is None or known_at is None:
            continue
        account: Account = codec.decoder(row[f"{source}_payload_schema"])(payload, 0)[0]
        if account.current is None:
            continue
        changeset = row[f"{source}_changeset"]
        yield Report(
            source,
            Decimal(account.current),
            account.currency,
            row["last_changeset"] if changeset is None else changeset,
            known_at,
            _date(account.last_updated_datetime),
        )


def _line(row: asyncpg.Record) -> Line:
    return Line(
        row["own_id"].hex(),
        _amount(Decimal(row["amount_value"]), row["amount_scale"]),
        row["currency"],
        row["pending"],
        row["date"],
        row["last_changeset"],
        to_micros(row["known_at"]) or 0,
        row["removed"],
        row["in_review"],
    )


def _amount(value: Decimal, scale: int) -> Decimal:
    """Convert an integer at a scale to major units; exact at any size, whatever the context rounds to."""
    return Decimal(f"{int(value)}e-{scale}")


def _date(text: str | None) -> datetime.date | None:
    try:
        return None if text is None else datetime.datetime.fromisoformat(text).date()
    except ValueError:  # the bank's own text; a balance without a time is compared all the same
        return None


_LAST_VERSION = f"""
       SELECT changeset FROM {SCHEMA}.account_versions v
        WHERE v.item_id = a.item_id AND v.account_id = a.account_id AND v.source = '{{source}}'
        ORDER BY v.version DESC LIMIT 1"""

# A history that a comparison has requested is not incomplete: it is about to be read. A sync without changes leaves no
# record, so its start is in sync_state.
_ACCOUNTS = f"""
SELECT a.item_id, a.account_id, a.user_number, a.type, a.cached_payload, a.cached_payload_schema, a.cached_at,
       a.realtime_payload, a.realtime_payload_schema, a.realtime_at, a.last_changeset, a.opened, a.continued_by_item,
       i.history_status, i.missing_rows, i.unlinked, i.last_sync_at, p.position, r.tied_at,
       CASE WHEN s.last_synced_at >= s.last_attempt_at THEN s.last_attempt_at END AS looked_at,
       coalesce(s.stopped IS NULL AND s.generation > s.done_generation, false)
           OR coalesce(s.wait_offset >= p.position, false) AS is_behind,
       cached.changeset AS cached_changeset, realtime.changeset AS realtime_changeset,
       coalesce(s.history_incomplete, false) AND NOT EXISTS (
           SELECT FROM tartan.discrepancies d WHERE d.item_id = a.item_id AND d.repair = 'compare'
              AND d.repaired_at IS NOT NULL AND d.resolved_at IS NULL) AS history_incomplete
  FROM unnest($1::text[], $2::text[]) AS k (item_id, account_id)
  JOIN {SCHEMA}.accounts a USING (item_id, account_id)
  JOIN {SCHEMA}.items i USING (item_id)
  LEFT JOIN {SCHEMA}.positions p ON p.partition = i.partition
  LEFT JOIN tartan.sync_state s USING (item_id)
  LEFT JOIN tartan.reconciliations r USING (item_id, account_id)
  LEFT JOIN LATERAL ({_LAST_VERSION.format(source="cached")}) cached ON true
  LEFT JOIN LATERAL ({_LAST_VERSION.format(source="realtime")}) realtime ON a.realtime_at IS NOT NULL"""

_LEDGER = f"""
SELECT a.user_number, a.reference, a.currency, a.scale, b.layer, b.debits - b.credits AS balance
  FROM {SCHEMA}.ledger_accounts a JOIN {SCHEMA}.ledger_balances b ON b.account = a.id
 WHERE a.user_number = ANY($1::bigint[]) AND a.kind = '{BANK}'"""

# By the user's index; a user's rows are a few thousand. Removed ones prove that the bank reports rows of the account.
_SUMS = f"""
SELECT item_id, account_id, currency, pending, amount_scale,
       sum(amount_value) FILTER (WHERE removed_at IS NULL AND review IS NULL) AS value
  FROM {SCHEMA}.transactions WHERE user_number = ANY($1::bigint[]) GROUP BY 1, 2, 3, 4, 5"""

_SIGNED = "CASE WHEN l.debit = {account} THEN l.amount ELSE -l.amount END"

_OPENINGS = f"""
SELECT l.own_id, a.id AS account, a.currency, a.scale, sum({_SIGNED.format(account="a.id")}) AS amount
  FROM {SCHEMA}.ledger_transfers l
  JOIN {SCHEMA}.ledger_accounts a ON a.kind = '{BANK}' AND a.id IN (l.debit, l.credit)
 WHERE l.own_id = ANY($1::bytea[]) GROUP BY 1, 2, 3, 4"""

_LINES = f"""
SELECT own_id, amount_value, amount_scale, currency, pending, date, last_changeset, known_at,
       removed_at IS NOT NULL AS removed, review IS NOT NULL AS in_review
  FROM {SCHEMA}.transactions
 WHERE user_number = $1 AND item_id = $2 AND account_id = $3
   AND (last_changeset >= $4 OR review IS NOT NULL OR (pending AND removed_at IS NULL))
 ORDER BY last_changeset DESC, own_id LIMIT $5"""

# Sums of the ledger account's transfers after two changesets: only rows that changed since have such transfers.
_MOVED = f"""
SELECT coalesce(sum({_SIGNED.format(account="$2")}) FILTER (WHERE l.layer = '{POSTED}' AND l.changeset > $3), 0)
       AS posted,
       coalesce(sum({_SIGNED.format(account="$2")}) FILTER (WHERE l.layer = '{PENDING}' AND l.changeset > $4), 0)
       AS pending
  FROM {SCHEMA}.transactions t JOIN {SCHEMA}.ledger_transfers l USING (own_id)
 WHERE t.user_number = $1 AND t.last_changeset > least($3::bigint, $4::bigint)
   AND (l.debit = $2::bytea OR l.credit = $2::bytea)"""

# The same bank, type and mask under another live Item.
_DUPLICATES = f"""
SELECT o.item_id, o.account_id,
       coalesce((o.continues_item, o.continues_account) = (a.item_id, a.account_id)
             OR (o.continued_by_item, o.continued_by_account) = (a.item_id, a.account_id), false) AS linked
  FROM {SCHEMA}.accounts a
  JOIN {SCHEMA}.items i ON i.item_id = a.item_id
  JOIN {SCHEMA}.accounts o ON o.user_number = a.user_number AND o.item_id <> a.item_id AND o.mask = a.mask
       AND o.type = a.type
  JOIN {SCHEMA}.items oi ON oi.item_id = o.item_id AND oi.institution_id = i.institution_id AND NOT oi.unlinked
 WHERE a.user_number = $1 AND a.item_id = $2 AND a.account_id = $3
 ORDER BY o.item_id, o.account_id"""

_DUPLICATE_ROWS = f"""
SELECT t.item_id, t.account_id, t.date, t.amount_value, t.amount_scale
  FROM unnest($2::text[], $3::text[]) AS k (item_id, account_id)
  JOIN {SCHEMA}.transactions t USING (item_id, account_id)
 WHERE t.user_number = $1 AND t.last_changeset >= $4 AND t.removed_at IS NULL LIMIT $5"""
