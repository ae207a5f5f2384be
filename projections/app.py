"""The composition root of `tartan projections`."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

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
"""For the continuity, the publisher's resume and checkpoints, the expiry, the dead letters, reconciliation; the projectors have
connections of their own."""
GROUP = READER if FOLD == 1 else f"{READER}-{FOLD}"
"""Consumer group, and name of the instance's lock. It has the fold: processes of two releases run side by side until
the next version is live, and each release's read the whole log. The first fold's is the name from before folds."""


@asynccontextmanager
async def stage(settings: Settings) -> AsyncIterator[Running]:
    """Project the partitions that the group gives to this process.

    Where no version is of this code's fold it waits, and its readiness says for what.
    Raises: Halt, where the instance id is in use or the tables are not there; Retry, where Kafka or Postgres is away.
    """
    async with AsyncExitStack() as stack:
        pool = await open_pool(settings, stage=READER, size=POOL_SIZE, role=settings.projector_role)
        stack.push_async_callback(pool.close)
        await writer.ensure_positions(pool, settings.partitions)
        appender, log = Appender(settings, client=READER), LogEnds(settings)
        for client in (appender, log):
            await client.start()
            stack.push_async_callback(client.stop)
        wire = SchemaIds(settings, pool)
        publisher = Publisher(appender, Outbox(pool), topic_prefix=settings.topic_prefix, prefixes=wire.prefixes)
        ownership = OwnerCache(Keyring(Vault(settings.master_key())))
        feeder = Consumer(settings, pool=pool, publisher=publisher, ownership=ownership)
        stack.callback(feeder.drop)

        def troubles() -> list[str]:
            return [*feeder.troubles(), *publisher.troubles(), *wire.troubles()]

        at_work = _at_work(settings, _Parts(pool, appender, log, publisher, feeder))
        if await feeder.look():
            yield Running(READER, troubles, await stack.enter_async_context(at_work))
        else:
            waiting = asyncio.create_task(_once_there(feeder, at_work))
            stack.push_async_callback(_end, waiting)
            yield Running(READER, troubles, waiting)


class _Parts(NamedTuple):
    pool: asyncpg.Pool
    appender: Appender
    log: LogEnds
    publisher: Publisher
    feeder: Consumer


@asynccontextmanager
async def _at_work(settings: Settings, parts: _Parts) -> AsyncIterator["asyncio.Task[None]"]:
    """Read, feed and publish; the task given ends, with its error, when one of these does."""
    pool, appender, log, publisher, feeder = parts
    topic = full_name(CHANGESETS, settings.topic_prefix)
    async with AsyncExitStack() as stack:
        lock = await stack.enter_async_context(alone(settings, GROUP))
        continuity = LogContinuity(log, topic=topic, reader=READER, load=feeder.positions)
        publishing = asyncio.create_task(publisher.run())
        stack.push_async_callback(_end, publishing)
        stack.push_async_callback(publisher.drain)
        app = faust_app.build(settings, name=GROUP, positions=_positions(continuity, publisher, feeder))
        reader = faust_app.reader(
            app, topic, agent="project", records_max=settings.batch_records_max, bytes_max=settings.batch_bytes_max
        )
        projecting = asyncio.create_task(feeder.run(reader))
        stack.push_async_callback(_end, projecting)
        engine = await stack.enter_async_context(faust_app.running(app))
        tasks = [publishing, projecting, engine, lock]
        for work in (
            continuity.watch(lambda: faust_app.assigned(app, topic), unacknowledged=reader.unacknowledged),
            dead_letters.run(pool, appender, settings),
            _while_it_acts(feeder, lambda: Expiry(pool).run_forever()),
            _while_it_acts(feeder, lambda: Reconciler(pool, settings).keep()),
        ):
            tasks.append(asyncio.create_task(work))
            stack.push_async_callback(_end, tasks[-1])
        ended = asyncio.create_task(_first(tasks))
        stack.push_async_callback(_end, ended)
        try:
            yield ended
        finally:
            if projecting.done():
                # Nobody is left to acknowledge what was read, so a stop must not wait for it.
                app.conf.stream_wait_empty = False


async def _once_there(feeder: Consumer, at_work: AbstractAsyncContextManager["asyncio.Task[None]"]) -> None:
    """Begin to work when there is a version to feed."""
    await feeder.wait()
    async with at_work as ended:
        await ended


async def _while_it_acts(feeder: Consumer, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Do work of the live version while this process feeds it, for ever. Raises what the work raises."""
    while True:
        await feeder.acts.wait()
        tasks = [asyncio.create_task(work()), asyncio.create_task(feeder.yields.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                tasks[0].result()
        finally:
            for task in tasks:
                await _end(task)


def _positions(continuity: LogContinuity, publisher: Publisher, feeder: Consumer) -> Positions:
    async def positions(assigned: Collection[tuple[str, int]]) -> Mapping[tuple[str, int], int]:
        """Where to begin, after a look at the log; what was committed there and not published is sent now."""
        numbers = [number for _, number in assigned]
        starts = await continuity.starts(numbers)
        committed = await feeder.published_up_to(numbers)
        publisher.submit(Committed({number: (at, at) for number, at in committed.items()}, []))
        return {(topic, number): starts[number] for topic, number in assigned}

    return positions


async def _first(tasks: list["asyncio.Task[None]"]) -> None:
    """End with the first of tasks that are meant to go on for ever. Raises what it raised."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


async def _end(task: "asyncio.Task[Any]") -> None:
    task.cancel()
    with contextlib.suppress(BaseException):
        await task
