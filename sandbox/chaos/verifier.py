"""Compare a stack, once it has recovered by itself, with its bank, its log and its topics."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable

import asyncpg
from aiokafka.errors import KafkaError

from projections.store.tables import SCHEMA
from projections.verify import digests
from runtime.postgres.errors import POSTGRES_ERRORS
from runtime.postgres.pool import borrowed
from sandbox.chaos.proxied_stack import ProxiedStack
from sandbox.observe import published_events
from sandbox.observe.log_replay import replay_differences
from sandbox.observe.observer import Session
from schemas.errors import Retry
from schemas.topics import PUBLIC, WEBHOOKS

SETTLE_S_MAX = 120.0
"""From the last fault until all of the bank's data is in every table. The longest single wait in it is a fifth attempt
after 16 to 24 s; a session of 30 s, where none shorter can be set, may come before it."""
POLL_S = 0.2
SHOWN_MAX = 3

_AWAY = (Retry, KafkaError, *POSTGRES_ERRORS)


class Verifier:
    """Find lost, duplicate and wrong data of a stack."""

    def __init__(self, stack: ProxiedStack, session: Session) -> None:
        self._stack, self._session = stack, session

    async def problems(self, note: Callable[[str], None]) -> list[str]:
        """Wait within a bound until all is quiet, and return all problems; empty where all data is correct.

        Raises: Halt, where a process does not get ready.
        """
        await asyncio.gather(*(stage.ready() for stage in self._stack.crashing_stages))
        note("every process is ready")
        unsettled = await self._settle()
        note("the tables equal the bank's truth" if not unsettled else unsettled[0])
        async with borrowed(self._session.observer.pool) as connection:
            problems = unsettled + await digests.ledger_problems(connection)
            for name, statement in _NONE_OF.items():
                rows = await connection.fetch(statement)
                problems += [f"{name}: {dict(row)}" for row in rows[:SHOWN_MAX]]
            problems += await self._topic_problems(connection)
            problems += await replay_differences(self._session.observer.settings, connection)
        return problems + await self._gateway_problems()

    async def _settle(self) -> list[str]:
        """Wait until nothing is pending and the tables equal the bank's truth; return the reason at the bound."""
        deadline = time.monotonic() + SETTLE_S_MAX
        while True:
            try:
                reasons = await self._session.observer.pending() or await self._truth_differences()
            except _AWAY as error:
                reasons = [f"{type(error).__name__}: {error}"]
            if not reasons:
                return []
            if time.monotonic() > deadline:
                return [f"not quiet after {SETTLE_S_MAX:g} s: {'; '.join(reasons)}"]
            await asyncio.sleep(POLL_S)

    async def _truth_differences(self) -> list[str]:
        observer, bank = self._session.observer, self._session.bank
        if await observer.equals_truth(bank):
            return []
        counts = {row["item_id"]: row["count"] for row in await observer.pool.fetch(_COUNTS)}
        differences = [
            f"{item['item_id']} has {counts.get(item['item_id'], 0)} of {len(item['transactions'])} transactions"
            for item in await bank.truth()
            if counts.get(item["item_id"], 0) != len(item["transactions"])
        ]
        return ["the tables differ from the bank's truth", *differences[:SHOWN_MAX]]

    async def _topic_problems(self, connection: asyncpg.Connection) -> list[str]:
        attempts = await self._session.bank.deliveries()
        topics = await published_events.read_topics(self._session.observer.settings, (WEBHOOKS, *PUBLIC))
        expected = await published_events.expected_events(connection)
        problems, logged = [], []
        for partition, records in topics.items():
            if partition[0] == WEBHOOKS.name:
                logged += records
            else:
                published = published_events.deduplicate(map(published_events.event_of, records))
                problems += published_events.first_difference(partition, published, expected)
        lost = published_events.lost_webhooks(published_events.accepted(attempts), logged)
        return problems + [
            f"a webhook was answered with 200 and is not in the log: {delivery}" for delivery in lost[:SHOWN_MAX]
        ]

    async def _gateway_problems(self) -> list[str]:
        """Compare the number of transactions of each user at the gateway with the bank's."""
        problems = []
        expected: Counter[str] = Counter()
        for item in await self._session.bank.truth():
            expected[item["user"]] += len(item["transactions"])
        for user, count in expected.items():
            # Transactions in a review are listed apart, and the bank has them too.
            listed = await self._count_listed(user) + await self._count_listed(user, in_review="true")
            if listed != count:
                problems.append(f"the gateway lists {listed} of {count} transactions of {user}")
        return problems

    async def _count_listed(self, user: str, **filters: str) -> int:
        filters["limit"] = "200"
        count = 0
        while True:
            page = await self._session.application.transactions(user, **filters)
            count += len(page["transactions"])
            if not page.get("next_cursor"):
                return count
            filters["cursor"] = page["next_cursor"]


_COUNTS = "SELECT item_id, count(*) FROM reads.transactions WHERE removed_at IS NULL GROUP BY item_id"
# Each of these rows would need a person.
_NONE_OF = {
    "quarantined": "SELECT item_id, first_offset, reason FROM tartan.quarantines WHERE redrive_offset IS NULL",
    "dead letter": "SELECT item_id, stage, reason FROM tartan.dead_letters",
    "withheld": f"SELECT item_id, source_offset FROM {SCHEMA}.withheld",
    "stopped": "SELECT item_id, stopped, last_error::text FROM tartan.sync_state WHERE stopped IS NOT NULL",
}
