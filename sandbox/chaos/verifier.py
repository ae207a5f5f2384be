"""What must be true after each run, asked of a world that nobody helped to get there."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import asyncpg
from aiokafka.errors import KafkaError

from projections.store.tables import SCHEMA
from projections.verify import digests
from runtime.postgres.errors import POSTGRES_ERRORS
from runtime.postgres.pool import borrowed
from sandbox.chaos.proxied_stack import ProxiedStack
from sandbox.infra.clients import Application, Bank, truth_digest
from sandbox.observe import log_replay, published_events
from sandbox.observe.observer import Observer
from schemas.errors import Retry
from schemas.topics import PUBLIC, WEBHOOKS

SETTLE_S_MAX = 120.0
"""From the last fault until all that the bank has is everywhere. The longest single wait in it is a fifth attempt after
16 to 24 s; a session of 30 s, where none shorter can be set, may come before it."""
LOOK_S = 0.2
SHOWN_MAX = 3

_AWAY = (Retry, KafkaError, *POSTGRES_ERRORS)


class Verifier:
    """Compares a world with its bank, its log and its topics."""

    def __init__(self, world: ProxiedStack, observer: Observer, bank: Bank, application: Application) -> None:
        self._world, self._observer, self._bank, self._application = world, observer, bank, application

    async def problems(self, say: Callable[[str], None]) -> list[str]:
        """What is wrong, in words; empty where all is true. Waits, within a bound, until all is quiet.

        Raises: Halt, where a process does not get ready.
        """
        await asyncio.gather(*(stage.ready() for stage in self._world.victims))
        say("every process is ready")
        waiting = await self._settled()
        say("the tables equal the bank's truth" if not waiting else waiting[0])
        async with borrowed(self._observer.pool) as connection:
            found = waiting + await self._of_tables(connection)
            found += await self._of_topics(connection)
        return found + await self._of_gateway()

    async def _settled(self) -> list[str]:
        """Wait until nothing is under way and the tables equal the bank's truth; else what is missing."""
        deadline = time.monotonic() + SETTLE_S_MAX
        while True:
            try:
                missing = await self._observer.waiting() or await self._differing()
            except _AWAY as error:
                missing = [f"{type(error).__name__}: {error}"]
            if not missing:
                return []
            if time.monotonic() > deadline:
                return [f"not quiet after {SETTLE_S_MAX:g} s: {'; '.join(missing)}"]
            await asyncio.sleep(LOOK_S)

    async def _differing(self) -> list[str]:
        truth = await self._bank.truth()
        async with borrowed(self._observer.pool) as connection:
            if await digests.state_digest(connection) == truth_digest(truth):
                return []
            rows = await connection.fetch(_COUNTS)
        counts = {row["item_id"]: row["count"] for row in rows}
        wrong = [
            f"{item['item_id']} has {counts.get(item['item_id'], 0)} of {len(item['transactions'])} transactions"
            for item in truth
            if counts.get(item["item_id"], 0) != len(item["transactions"])
        ]
        return ["the tables differ from the bank's truth", *wrong[:SHOWN_MAX]]

    async def _of_tables(self, connection: asyncpg.Connection) -> list[str]:
        found = await digests.ledger_problems(connection)
        for name, statement in _NONE_OF.items():
            rows = await connection.fetch(statement)
            found += [f"{name}: {dict(row)}" for row in rows[:SHOWN_MAX]]
        return found

    async def _of_topics(self, connection: asyncpg.Connection) -> list[str]:
        deliveries = await self._bank.deliveries()
        read = await published_events.whole(self._observer.settings, (WEBHOOKS, *PUBLIC))
        wanted = await published_events.to_publish(connection)
        found = []
        for (topic, partition), records in read.items():
            if topic != WEBHOOKS.name:
                published = published_events.deduplicate(records)
                found += published_events.unlike(f"{topic} {partition}", published, wanted.get((topic, partition), []))
        logged = [one for (topic, _), records in read.items() if topic == WEBHOOKS.name for one in records]
        lost = published_events.lost_webhooks(published_events.accepted(deliveries), logged)
        found += [f"a webhook was answered with 200 and is not in the log: {one}" for one in lost[:SHOWN_MAX]]
        return found + await log_replay.differing(self._observer.settings, connection)

    async def _of_gateway(self) -> list[str]:
        """Whether the gateway shows each user as many transactions as the bank has."""
        found = []
        truth: dict[str, int] = {}
        for item in await self._bank.truth():
            truth[item["user"]] = truth.get(item["user"], 0) + len(item["transactions"])
        for user, count in truth.items():
            # What a review holds the bank has too; it is listed apart.
            shown = await self._listed(user) + await self._listed(user, in_review="true")
            if shown != count:
                found.append(f"the gateway shows {shown} of {count} transactions of {user}")
        return found

    async def _listed(self, user: str, **which: str) -> int:
        filters: dict[str, str] = {"limit": "200", **which}
        shown = 0
        while True:
            page: dict[str, Any] = await self._application.transactions(user, **filters)
            shown += len(page["transactions"])
            if not page.get("next_cursor"):
                return shown
            filters["cursor"] = page["next_cursor"]


_COUNTS = "SELECT item_id, count(*) FROM reads.transactions WHERE removed_at IS NULL GROUP BY item_id"
# Whatever is here needs a person.
_NONE_OF = {
    "quarantined": "SELECT item_id, first_offset, reason FROM tartan.quarantines WHERE redrive_offset IS NULL",
    "dead letter": "SELECT item_id, stage, reason FROM tartan.dead_letters",
    "withheld": f"SELECT item_id, source_offset FROM {SCHEMA}.withheld",
    "stopped": "SELECT item_id, stopped, last_error::text FROM tartan.sync_state WHERE stopped IS NOT NULL",
}
