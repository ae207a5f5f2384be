"""Composition root of `tartan projections`: changesets become tables, a ledger, public events and pushes.

Steps of the stage, in order:

1. `consumer.run` reads records of `changesets`, decodes their heads (`decode.log_record`) and cuts batches.
2. `consumer.feed` projects a batch into the live version, then into the one that was live before.
3. `projector.handle_batch` locks the positions and reads the gate's state (`store.gate_state`).
4. The gate decides which records count, decrypts and decodes them (`gate.check`, `decode.changeset`).
5. `store.loader` loads the rows that the records can touch into a unit of work (`model.unit_of_work`).
6. `fold.fold` applies each record; `fold.redrive` is the exception, for a redrive with the records that it releases.
7. `store.writer` saves rows, transfers, net events and positions, and the transaction commits.
8. `publish.publisher` publishes the events; `consumer.run` acknowledges the batch.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg

from projections.consumer import Consumer
from projections.projector import READER
from projections.publish.outbox import Outbox
from projections.publish.publisher import Committed, Publisher
from projections.publish.retention import Expiry
from projections.reconcile.job import Reconciler
from projections.store import writer
from projections.store.tables import FOLD
from projections.user_keys import OwnerCache
from runtime.incidents import dead_letters
from runtime.kafka import faust_app
from runtime.kafka.clients import Appender, LogEnds
from runtime.kafka.continuity import LogContinuity
from runtime.kafka.faust_app import Positions
from runtime.kafka.schema_ids import SchemaIds
from runtime.lifecycle import Running
from runtime.postgres.instance_lock import alone
from runtime.postgres.pool import open_pool
from runtime.settings import Settings
from runtime.users.keys import Keyring
from runtime.users.vault import Vault
from schemas.topics import CHANGESETS, full_name

POOL_SIZE = 6
"""Connections for continuity, the publisher's resume and checkpoints, expiry, dead letters and reconciliation; the
projectors have their own."""
GROUP = READER if FOLD == 1 else f"{READER}-{FOLD}"
"""Consumer group, and name of the instance's lock. It has the fold: processes of two releases run side by side until
the next version is live, and each release's read the whole log. The first fold's is the name from before folds."""


@asynccontextmanager
async def stage(settings: Settings) -> AsyncIterator[Running]:
    """Project the partitions that the group assigns to this process.

    Where no version is of this code's fold it waits, and its readiness names the reason.
    Raises: Halt, where the instance id is in use or the tables are missing; Retry, where Kafka or Postgres is away.
    """
    async with AsyncExitStack() as stack:
        pool = await open_pool(settings, stage=READER, size=POOL_SIZE, role=settings.projector_role)
        stack.push_async_callback(pool.close)
        await writer.ensure_positions(pool, settings.partitions)
        appender, log = Appender(settings, client=READER), LogEnds(settings)
        for client in (appender, log):
            await client.start()
            stack.push_async_callback(client.stop)
        schema_ids = SchemaIds(settings, pool)
        publisher = Publisher(appender, Outbox(pool), topic_prefix=settings.topic_prefix, prefixes=schema_ids.prefixes)
        owners = OwnerCache(Keyring(Vault(settings.master_key())))
        consumer = Consumer(settings, pool=pool, publisher=publisher, owners=owners)
        stack.callback(consumer.drop)

        def troubles() -> list[str]:
            return [*consumer.troubles(), *publisher.troubles(), *schema_ids.troubles()]

        consuming = _consuming(settings, pool, appender, log, publisher, consumer)
        if await consumer.refresh_versions():
            yield Running(READER, troubles, await stack.enter_async_context(consuming))
        else:
            waiting = asyncio.create_task(_wait_and_consume(consumer, consuming))
            stack.push_async_callback(_cancel, waiting)
            yield Running(READER, troubles, waiting)


@asynccontextmanager
async def _consuming(
    settings: Settings, pool: asyncpg.Pool, appender: Appender, log: LogEnds, publisher: Publisher, consumer: Consumer
) -> AsyncIterator["asyncio.Task[None]"]:
    """Read, project and publish; the yielded task ends, with its error, when one of these does."""
    topic = full_name(CHANGESETS, settings.topic_prefix)
    async with AsyncExitStack() as stack:
        lock = await stack.enter_async_context(alone(settings, GROUP))
        continuity = LogContinuity(log, topic=topic, reader=READER, load=consumer.positions)
        publishing = asyncio.create_task(publisher.run())
        stack.push_async_callback(_cancel, publishing)
        stack.push_async_callback(publisher.drain)
        app = faust_app.build(settings, name=GROUP, positions=_positions(continuity, publisher, consumer))
        reader = faust_app.reader(
            app, topic, agent="project", records_max=settings.batch_records_max, bytes_max=settings.batch_bytes_max
        )
        projecting = asyncio.create_task(consumer.run(reader))
        stack.push_async_callback(_cancel, projecting)
        engine = await stack.enter_async_context(faust_app.running(app))
        tasks = [publishing, projecting, engine, lock]
        for work in (
            continuity.watch(lambda: faust_app.assigned(app, topic), unacknowledged=reader.unacknowledged),
            dead_letters.run(pool, appender, settings),
            _while_live(consumer, lambda: Expiry(pool).run_forever()),
            _while_live(consumer, lambda: Reconciler(pool, settings).keep()),
        ):
            tasks.append(asyncio.create_task(work))
            stack.push_async_callback(_cancel, tasks[-1])
        ended = asyncio.create_task(_first(tasks))
        stack.push_async_callback(_cancel, ended)
        try:
            yield ended
        finally:
            if projecting.done():
                # No task is left to acknowledge the records in flight, so a stop must not wait for it.
                app.conf.stream_wait_empty = False


async def _wait_and_consume(consumer: Consumer, consuming: AbstractAsyncContextManager["asyncio.Task[None]"]) -> None:
    await consumer.wait_for_version()
    async with consuming as ended:
        await ended


async def _while_live(consumer: Consumer, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Do work of the live version while this process feeds it, for ever. Raises the errors of the work."""
    while True:
        await consumer.live.wait()
        tasks = [asyncio.create_task(work()), asyncio.create_task(consumer.not_live.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                tasks[0].result()
        finally:
            for task in tasks:
                await _cancel(task)


def _positions(continuity: LogContinuity, publisher: Publisher, consumer: Consumer) -> Positions:
    async def positions(assigned: Collection[tuple[str, int]]) -> Mapping[tuple[str, int], int]:
        """Return the start positions after a check of the log, and publish committed events that wait."""
        numbers = [number for _, number in assigned]
        starts = await continuity.starts(numbers)
        committed = await consumer.published_up_to(numbers)
        publisher.submit(Committed({number: (end, end) for number, end in committed.items()}, []))
        return {(topic, number): starts[number] for topic, number in assigned}

    return positions


async def _first(tasks: list["asyncio.Task[None]"]) -> None:
    """Wait for the first end of tasks that run for ever. Raises its error."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


async def _cancel(task: "asyncio.Task[Any]") -> None:
    task.cancel()
    with contextlib.suppress(BaseException):
        await task
