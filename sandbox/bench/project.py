"""`tartan bench project`: how fast changesets become rows, ledger, balances and positions, and where the time goes.

A real Postgres that flushes, and nothing else: no Kafka, no other process. Parts are in wall time of one projector; in
production several of them share the partitions, and reading the log, publishing and pushing come on top.
"""

import asyncio
import contextlib
import gc
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import asyncpg
import msgspec
from pydantic import SecretStr
from rich.console import Console

from projections.decode.log_record import LogRecord, cut_batches, decode_record, known_time
from projections.fold.fold import fold
from projections.gate.check import GateCheck, Owners
from projections.model.unit_of_work import UnitOfWork
from projections.projector import EVENTS_MAX
from projections.store import loader, rows, writer
from projections.store.connection import Session
from projections.store.migrate import migrate
from projections.store.writer import NewPosition
from runtime.kafka.continuity import checksum
from runtime.settings import Settings
from sandbox.infra.cluster import Cluster, ClusterOptions
from sandbox.infra.generated_log import GeneratedLog, owners, transactions
from sandbox.infra.postgres import PostgresOptions
from schemas import events
from schemas.log.records import Transaction

READ, OPEN, FOLD, ROWS, WRITE, COMMIT = "read", "open", "fold", "rows", "write", "commit"
"""Positions, Items and known rows; gate, unsealing and decoding; the fold; its outcome as COPY has it; the statements;
the commit."""

UPDATE_ADDED, UPDATE_MODIFIED = 3, 2
"""What a webhook brings."""

SAID = (events.TRANSACTION_ADDED, events.TRANSACTION_MODIFIED)

NO_KAFKA = "127.0.0.1:1"
"""So that the sandbox starts none; nothing connects to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectOptions:
    """Histories of `transactions` over `items`, then `updates` of five transactions, each a batch of its own."""

    items: int
    transactions: int
    updates: int
    as_json: bool


async def run_project(options: ProjectOptions) -> int:
    """Run it and print the result."""
    console = Console(stderr=True)
    console.print(f"a log of {options.transactions:,} transactions in {options.items} Items")
    history, updates = _log(options)
    cluster = ClusterOptions(kafka_address=NO_KAFKA, postgres=PostgresOptions())
    async with Cluster(cluster) as servers:
        await asyncio.to_thread(migrate, servers.postgres_dsn)
        session = Session(Settings(postgres_dsn=SecretStr(servers.postgres_dsn)))
        try:
            connection = await session.connection()
            await writer.ensure_positions(connection, 1)
            gc.collect()
            gc.freeze()
            gc.set_threshold(50_000)
            console.print("histories")
            backfill = await _measured(connection, list(cut_batches(history, EVENTS_MAX)))
            console.print("updates")
            trickle = await _measured(connection, [[record] for record in updates])
        finally:
            await session.close()
    result = {**backfill, "updates": trickle, "options": asdict(options), "cores": os.cpu_count()}
    if options.as_json:
        print(json.dumps(result))
    else:
        console.print_json(json.dumps(result))
    return 0


def _log(options: ProjectOptions) -> tuple[list[LogRecord], list[LogRecord]]:
    """Histories and updates, their heads read: that is done before a batch is cut."""
    log, each = GeneratedLog(), max(1, options.transactions // options.items)
    known_of = {user: transactions(each, user) for user in range(1, options.items + 1)}
    for user, said in known_of.items():
        log.link(user)
        log.history(user, said)
    count = len(log.records)
    for number in range(options.updates):
        user = 1 + number % options.items
        fresh = transactions(UPDATE_ADDED, options.items + 1 + number)
        changed = [_changed(one, number) for one in known_of[user][number % each :][:UPDATE_MODIFIED]]
        log.update(user, fresh, changed, f"{number}.01")
    opened = [decode_record(record) for record in log.records]
    return opened[:count], opened[count:]


def _changed(one: Transaction, number: int) -> Transaction:
    return msgspec.structs.replace(one, amount=f"{number % 97}.{number % 89:02d}1")


class _Clock:
    """Wall time by part. Units: seconds."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = dict.fromkeys((READ, OPEN, FOLD, ROWS, WRITE, COMMIT), 0.0)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.spent[name] += time.perf_counter() - began


async def _measured(connection: asyncpg.Connection, batches: Sequence[Sequence[LogRecord]]) -> dict[str, Any]:
    clock, count, records = _Clock(), 0, 0
    owned = owners({one.head.user for batch in batches for one in batch})
    for batch in batches:
        working = await _project(connection, batch, owned, clock)
        count += sum(folded.counts.get(kind, 0) for folded in working.folded for kind in SAID)
        records += len(batch)
    total = sum(clock.spent.values())
    return {
        "transactions": count,
        "transactions_per_s": round(count / total),
        "seconds": round(total, 3),
        "changesets": records,
        "batches": len(batches),
        "ms_per_batch": round(total * 1e3 / len(batches), 3),
        "us_per_transaction": {name: round(seconds * 1e6 / count, 2) for name, seconds in clock.spent.items()},
    }


async def _project(
    connection: asyncpg.Connection, batch: Sequence[LogRecord], owned: Owners, clock: _Clock
) -> UnitOfWork:
    """What projections.projector does with a batch that nothing is wrong with, part by part."""
    last = batch[-1].received
    began = time.perf_counter()
    async with loader.lock_positions(connection, {0}):
        clock.spent[READ] += time.perf_counter() - began
        with clock.part(READ):
            control = await loader.read_gate_state(connection, {0}, {one.head.item_id or "" for one in batch}, [])
        with clock.part(OPEN):
            moment = control.positions[0].known_at
            placed = []
            for one in batch:
                moment = known_time(one, moment)
                placed.append(one._replace(known_at=moment))
            working = UnitOfWork()
            working.items, working.reviews = control.items, control.reviews
            keeper = GateCheck(items=working.items, quarantined={}, known_ids=set(), owners=owned, poisoned={})
            outcome = keeper.check(placed)
        with clock.part(READ):
            await loader.load_rows(connection, working, outcome.all_accepted())
        with clock.part(FOLD):
            for record in outcome.accepted:
                fold(working, record)
        encoding = _encoding_s(working)
        with clock.part(WRITE):
            advanced = NewPosition(0, last.offset + 1, checksum(last.value), moment)
            await writer.write(connection, working, outcome, [advanced], {})
        clock.spent[ROWS] += encoding
        clock.spent[WRITE] -= encoding
        began = time.perf_counter()
    clock.spent[COMMIT] += time.perf_counter() - began
    return working


def _encoding_s(working: UnitOfWork) -> float:
    """What making the rows costs, once more and for nothing: in `write` it is between the statements."""
    began = time.perf_counter()
    for encoded in (
        rows.copy_transactions(working.new),
        rows.copy_transactions(working.changed.values()),
        rows.copy_transfers(working.book.transfers),
        map(rows.changeset_values, working.folded),
    ):
        for _ in encoded:
            pass
    return time.perf_counter() - began
