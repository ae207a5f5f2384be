"""`tartan bench project`: how fast changesets become rows, ledger, balances and positions, and the time of each part.

A real Postgres that flushes, and nothing else: no Kafka, no other process. Parts are in wall time of one projector; in
production several of them share the partitions, and reading the log, publishing and pushing come on top.
"""

import asyncio
import contextlib
import gc
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
from projections.store import copy_rows, gate_state, loader, rows, writer
from projections.store.connection import Session
from projections.store.migrate import migrate
from projections.store.writer import NewPosition
from runtime.kafka.continuity import checksum
from runtime.settings import Settings
from sandbox.bench.result import print_result
from sandbox.infra.cluster import Cluster, ClusterOptions
from sandbox.infra.generated_log import GeneratedLog, owners, transactions
from sandbox.infra.postgres import PostgresOptions
from schemas import events

READ, OPEN, FOLD, ROWS, WRITE, COMMIT = "read", "open", "fold", "rows", "write", "commit"
"""Positions, Items and known rows; gate, unsealing and decoding; the fold; encoding of its result for COPY; the
statements; the commit."""
UPDATE_ADDED, UPDATE_MODIFIED = 3, 2
"""Transactions of an update, as in a usual webhook's sync run."""
COUNTED_EVENTS = (events.TRANSACTION_ADDED, events.TRANSACTION_MODIFIED)
NO_KAFKA = "127.0.0.1:1"
"""An address, so that the sandbox starts no Kafka; nothing connects to it."""


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
    history, updates = _generate(options)
    async with Cluster(ClusterOptions(kafka_address=NO_KAFKA, postgres=PostgresOptions())) as cluster:
        await asyncio.to_thread(migrate, cluster.postgres_dsn)
        session = Session(Settings(postgres_dsn=SecretStr(cluster.postgres_dsn)))
        try:
            connection = await session.connection()
            await writer.ensure_positions(connection, 1)
            gc.collect()
            gc.freeze()
            gc.set_threshold(50_000)
            console.print("histories")
            backfill = await _measure(connection, list(cut_batches(history, EVENTS_MAX)))
            console.print("updates")
            update_figures = await _measure(connection, [[record] for record in updates])
        finally:
            await session.close()
    result = {**backfill, "updates": update_figures, "options": asdict(options), "cores": os.cpu_count()}
    print_result(result, console, as_json=options.as_json)
    return 0


def _generate(options: ProjectOptions) -> tuple[list[LogRecord], list[LogRecord]]:
    """Return histories and updates with decoded heads, as they are when a batch is cut."""
    log, each = GeneratedLog(), max(1, options.transactions // options.items)
    known_of = {user: transactions(each, user) for user in range(1, options.items + 1)}
    for user, known in known_of.items():
        log.link(user)
        log.history(user, known)
    count = len(log.records)
    for number in range(options.updates):
        user, amount = 1 + number % options.items, f"{number % 97}.{number % 89:02d}1"
        added = transactions(UPDATE_ADDED, options.items + 1 + number)
        modified = known_of[user][number % each :][:UPDATE_MODIFIED]
        modified = [msgspec.structs.replace(transaction, amount=amount) for transaction in modified]
        log.update(user, added, modified, f"{number}.01")
    opened = [decode_record(record) for record in log.records]
    return opened[:count], opened[count:]


class _Timer:
    """Wall time of each part, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys((READ, OPEN, FOLD, ROWS, WRITE, COMMIT), 0.0)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - started


async def _measure(connection: asyncpg.Connection, batches: Sequence[Sequence[LogRecord]]) -> dict[str, Any]:
    timer, count, records = _Timer(), 0, 0
    owned = owners({record.head.user for batch in batches for record in batch})
    for batch in batches:
        working = await _project(connection, batch, owned, timer)
        count += sum(folded.counts.get(kind, 0) for folded in working.folded for kind in COUNTED_EVENTS)
        records += len(batch)
    total = sum(timer.seconds.values())
    return {
        "transactions": count,
        "transactions_per_s": round(count / total),
        "seconds": round(total, 3),
        "changesets": records,
        "batches": len(batches),
        "ms_per_batch": round(total * 1e3 / len(batches), 3),
        "us_per_transaction": {name: round(seconds * 1e6 / count, 2) for name, seconds in timer.seconds.items()},
    }


async def _project(
    connection: asyncpg.Connection, batch: Sequence[LogRecord], owned: Owners, timer: _Timer
) -> UnitOfWork:
    """Project a batch without failures, part by part, as `projections.projector` does."""
    last = batch[-1].received
    started = time.perf_counter()
    async with gate_state.lock_positions(connection, {0}):
        timer.seconds[READ] += time.perf_counter() - started
        with timer.part(READ):
            item_ids = {record.head.item_id or "" for record in batch}
            control = await gate_state.read_gate_state(connection, {0}, item_ids, [])
        with timer.part(OPEN):
            moment = control.positions[0].known_at
            placed = []
            for record in batch:
                moment = known_time(record, moment)
                placed.append(record._replace(known_at=moment))
            working = UnitOfWork()
            working.items, working.reviews = control.items, control.reviews
            gate_check = GateCheck(items=working.items, quarantined={}, known_ids=set(), owners=owned, poisoned={})
            outcome = gate_check.check(placed)
        with timer.part(READ):
            await loader.load_rows(connection, working, outcome.all_accepted())
        with timer.part(FOLD):
            for accepted in outcome.accepted:
                fold(working, accepted)
        encoding = _encoding_s(working)
        with timer.part(WRITE):
            advanced = NewPosition(0, last.offset + 1, checksum(last.value), moment)
            await writer.write(connection, working, outcome, [advanced], {})
        timer.seconds[ROWS] += encoding
        timer.seconds[WRITE] -= encoding
        started = time.perf_counter()
    timer.seconds[COMMIT] += time.perf_counter() - started
    return working


def _encoding_s(working: UnitOfWork) -> float:
    """Encode the rows once more, apart from the statements that `write` has between them; return the seconds."""
    started = time.perf_counter()
    for encoded in (
        copy_rows.copy_transactions(working.new),
        copy_rows.copy_transactions(working.changed.values()),
        copy_rows.copy_transfers(working.book.transfers),
        map(rows.changeset_values, working.folded),
    ):
        for _ in encoded:
            pass
    return time.perf_counter() - started
