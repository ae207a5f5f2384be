"""The composition root of `tartan projections`."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg

from projections import known, store
from projections.expiry import Expiry
from projections.outbox import Outbox
from projections.ownership import Ownership
from projections.project import READER, Projector
from projections.publish import Committed, Publisher
from projections.reconciliation import Reconciler
from projections.session import Session
from runtime import dead_letters, stream
from runtime.instance import alone
from runtime.kafka import Appender, LogEnds
from runtime.lifecycle import Running
from runtime.postgres import open_pool
from runtime.reader import Position
from runtime.settings import Settings
from runtime.stream import Positions
from runtime.users import Keyring
from runtime.vault import Vault
from runtime.wire import Wire
from runtime.witness import Witness
from schemas.topics import CHANGESETS, full_name

POOL_SIZE = 6
"""For the witness, the publisher's resume and floors, the expiry, the dead letters, reconciliation; the projector has a
connection of its own."""


@asynccontextmanager
async def stage(settings: Settings) -> AsyncIterator[Running]:
    """Project the partitions that the group gives to this process.

    Raises: Halt, where the instance id is in use or the tables are not there; Retry, where Kafka or Postgres is away.
    """
    topic = full_name(CHANGESETS, settings.topic_prefix)
    keyring = Keyring(Vault(settings.master_key()))
    async with AsyncExitStack() as stack:
        pool = await open_pool(settings, stage=READER, size=POOL_SIZE, role=settings.projector_role)
        stack.push_async_callback(pool.close)
        await store.ensure_positions(pool, settings.partitions)
        lock = await stack.enter_async_context(alone(settings, READER))
        appender, log = Appender(settings, client=READER), LogEnds(settings)
        for client in (appender, log):
            await client.start()
            stack.push_async_callback(client.stop)
        wire = Wire(settings, pool)
        publisher = Publisher(appender, Outbox(pool), topic_prefix=settings.topic_prefix, wire=wire.prefixes)
        session = Session(settings)
        stack.push_async_callback(session.close)
        projector = Projector(session, publisher, Ownership(keyring), settings)
        witness = Witness(log, topic=topic, reader=READER, load=lambda partitions: _load(pool, partitions))

        publishing = asyncio.create_task(publisher.run())
        stack.push_async_callback(_end, publishing)
        stack.push_async_callback(publisher.drain)
        app = stream.build(settings, name=READER, positions=_positions(witness, publisher))
        reader = stream.reader(
            app, topic, agent="project", records_max=settings.batch_records_max, bytes_max=settings.batch_bytes_max
        )
        projecting = asyncio.create_task(projector.run(reader))
        stack.push_async_callback(_end, projecting)
        engine = await stack.enter_async_context(stream.running(app))
        tasks = [publishing, projecting, engine, lock]
        for work in (
            witness.watch(lambda: stream.assigned(app, topic), held=reader.held), Expiry(pool).keep(),
            dead_letters.run(pool, appender, settings), Reconciler(pool, settings).keep(),
        ):  # fmt: skip
            tasks.append(asyncio.create_task(work))
            stack.push_async_callback(_end, tasks[-1])
        ended = asyncio.create_task(_first(tasks))
        stack.push_async_callback(_end, ended)
        try:
            yield Running(READER, lambda: [*projector.troubles(), *publisher.troubles(), *wire.troubles()], ended)
        finally:
            if projecting.done():
                # Nobody is left to acknowledge what was read, so a stop must not wait for it.
                app.conf.stream_wait_empty = False


def _positions(witness: Witness, publisher: Publisher) -> Positions:
    async def positions(assigned: Collection[tuple[str, int]]) -> Mapping[tuple[str, int], int]:
        """Where to begin, after a look at the log; what was committed there and not published is sent now."""
        starts = await witness.starts([number for _, number in assigned])
        publisher.hand(Committed({number: (at, at) for number, at in starts.items()}, []))
        return {(topic, number): starts[number] for topic, number in assigned}

    return positions


async def _load(pool: asyncpg.Pool, partitions: Collection[int]) -> dict[int, Position]:
    return await known.positions(pool, partitions)


async def _first(tasks: list["asyncio.Task[None]"]) -> None:
    """End with the first of tasks that are meant to go on for ever. Raises what it raised."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(BaseException):
        await task
