"""As of any time and date: what a replay of the log, cut there, gives."""

import datetime
import random
from collections import defaultdict
from fractions import Fraction
from typing import Any

import asyncpg
import pytest

from projections.ledger import user_field_values
from projections.model import pg_copy
from projections.read import as_of, queries
from projections.read.queries import Row
from sandbox.infra.postgres import Postgres
from sandbox.simulation.memory.projection_tables import MemoryProjections
from schemas.encoding import codec
from schemas.log.records import Account, Transaction
from schemas.times import from_micros
from tests.integration.projections.test_store import Database, fresh, template  # noqa: F401
from tests.support import projections_kin
from tests.support.projections_log import Log, owners, transaction
from tests.support.projections_ties import tied_history

LOGS, PAIRS, STEPS = 5, 200, 60
RELINKED = (2, 7)
"""Seeds of stories in which somebody has to review something."""
DATES = [
    datetime.date(2026, 2, 28),
    *(datetime.date(2026, month, day) for month in (3, 4) for day in range(1, 8)),
    None,
]


SAID_NOW = user_field_values.effective(transaction("T"), {}).keys()


def relinked_history(rng: random.Random) -> Log:
    """One account that several Items tell of, with reviews and what people decide."""
    steps = [(rng.choice(projections_kin.ACTS), rng.randrange(4), rng.randrange(3)) for _ in range(STEPS)]
    return projections_kin.Bank(steps).log


@pytest.mark.parametrize("seed", range(LOGS))
async def test_as_of_any_time_and_date_is_a_replay_cut_there(postgres: Postgres, template: str, seed: int) -> None:
    rng = random.Random(seed)
    log = tied_history(rng).log
    assert len({at for at, _ in _cuts(log)}) < len(log.records)  # several records share their time

    async with fresh(postgres, f"as_of{seed}") as database:
        await _assert_replays(database, log, rng)


@pytest.mark.parametrize("seed", RELINKED)
async def test_as_of_is_a_replay_where_transactions_went_from_item_to_item(
    postgres: Postgres, template: str, seed: int
) -> None:
    rng = random.Random(seed)
    log = relinked_history(rng)

    async with fresh(postgres, f"relinked{seed}") as database:
        await _assert_replays(database, log, rng)

        connection = await database.connection()
        assert await connection.fetchval("SELECT count(*) FROM reads.transaction_matches") > 0
        assert await connection.fetchval("SELECT count(*) FROM reads.reviews") > 0


async def _assert_replays(database: Database, log: Log, rng: random.Random) -> None:
    cuts = _cuts(log)
    await database.project(log.records, [rng.randrange(len(log.records)) for _ in range(5)])
    connection = await database.connection()
    times = [at for at, _ in cuts]
    for _ in range(PAIRS):
        known_at = rng.choice(times) + rng.choice((-1, 0, 0, 1, 30_000_000))
        effective_at = rng.choice(DATES)
        cut = max((one for at, one in cuts if at <= known_at), key=lambda one: one.records, default=NOTHING)

        found = await _as_of(connection, known_at, effective_at, limit=rng.choice((2, 7, 500)))

        assert found == cut.until(effective_at), (known_at, effective_at)


class Cut:
    """What a memory had known when it had been fed a number of records."""

    def __init__(self, memory: MemoryProjections, records: int) -> None:
        self.records = records
        self.rows = {
            row.own_id.hex(): (codec.decode(Transaction, row.payload), _row(row))
            for row in memory.rows.values()
            if row.is_shown
        }
        self.accounts = {
            (row.item_id, row.account_id): (_said(row), row.source, row.version, _at(row.cached_at), _at(row.known_at))
            for row in memory.accounts.values()
        }
        self.transfers = list(memory.transfers)
        self.meanings = dict(memory.meanings)

    def until(self, effective_at: datetime.date | None) -> tuple[Any, ...]:
        latest = effective_at or datetime.date.max
        rows = {
            own: row for own, (payload, row) in self.rows.items() if datetime.date.fromisoformat(payload.date) <= latest
        }
        sums: dict[tuple[str, str], list[Fraction]] = defaultdict(lambda: [Fraction(0), Fraction(0)])
        for one in self.transfers:
            if pg_copy.read_date(one.effective) <= latest:
                scale = self.meanings[one.debit][4]
                assert isinstance(scale, int)
                for side, account in enumerate((one.debit, one.credit)):
                    sums[account.hex(), one.layer][side] += Fraction(one.amount, 10**scale)
        return rows, self.accounts, dict(sums)


def _cuts(log: Log) -> list[tuple[int, Cut]]:
    """The time of each record, and what is known behind it."""
    memory, cuts = MemoryProjections(owners), []
    for record in log.records:
        memory.project([record])
        cuts.append((memory.known_at[0], Cut(memory, len(cuts) + 1)))
    return cuts


NOTHING = Cut(MemoryProjections(owners), 0)


async def _as_of(
    connection: asyncpg.Connection, known_at: int, effective_at: datetime.date | None, *, limit: int
) -> tuple[Any, ...]:
    at = from_micros(known_at)
    assert at is not None
    rows: list[Row] = []
    after = None
    while True:
        page = await as_of.transactions(connection, 1, at, effective_at, limit=limit, after=after)
        rows += page.rows
        assert len(page.rows) <= limit
        if page.next is None:
            break
        after = page.next
    order = [(row["date"], row["id"]) for row in rows]
    assert order == sorted(set(order), reverse=True)
    accounts = {
        (row["item_id"], row["account_id"]): (
            (row["name"], row["type"], row["current"]),
            row["source"],
            row["version"],
            row["cached_at"],
            row["known_at"],
        )
        for row in await as_of.accounts(connection, 1, at)
    }
    ledger = {
        (row["account"], row["layer"]): [Fraction(row["debits"]), Fraction(row["credits"])]
        for row in await as_of.ledger_balances(connection, 1, at, effective_at)
    }
    return {row["id"]: _shown(row) for row in rows}, accounts, ledger


def _row(row: Any) -> tuple[Any, ...]:
    payload = codec.decode(Transaction, row.payload)
    return (
        row.item_id,
        row.transaction_id,
        row.version,
        _at(row.known_at),
        payload.amount,
        payload.date,
        payload.pending,
        user_field_values.effective(payload, user_field_values.values(row.user_fields)),
    )


def _shown(row: Row) -> tuple[Any, ...]:
    return (
        row["item_id"],
        row["transaction_id"],
        row["version"],
        row["known_at"],
        row["amount"],
        row["date"],
        row["pending"],
        {name: row[name] for name in SAID_NOW},
    )


def _said(row: Any) -> tuple[Any, ...]:
    payload = codec.decode(Account, row.cached_payload)
    return payload.name, payload.type, payload.current


def _at(microseconds: int | None) -> str | None:
    at = from_micros(microseconds)
    return None if at is None else queries.to_json({"at": at})["at"]
