"""Gateway under test: REST calls of two tenants, on a real Postgres and a simulated Plaid, and rows for its tables."""

import asyncio
import datetime
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import zstandard
from aiohttp import ClientSession

from gateway.app import Gateway, serving
from gateway.http.response_schemas import SCHEMAS
from gateway.live.hub import Hub
from projections.store.tables import SCHEMA
from runtime.kafka.clients import Appender
from runtime.plaid.client import Plaid
from runtime.postgres.pool import open_pool
from runtime.settings import Settings
from sandbox.simulator.api.server import running as simulator_running
from sandbox.simulator.options import Options
from schemas.encoding import catalogue, codec
from schemas.ids import own_id
from tests.support.projections_log import transaction

CRON_SECRET = "said-to-the-cron-alone"
KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
TODAY = datetime.date(2026, 9, 21)
NOW = datetime.datetime(2026, 9, 21, 12, tzinfo=datetime.UTC)


class Api:
    """A client of two tenants, and the rows of the tables behind the gateway."""

    def __init__(self, address: str, session: ClientSession, pool: asyncpg.Pool, settings: Settings) -> None:
        self.address, self.session, self.pool, self.settings = address, session, pool, settings

    async def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        key: str | None = "key-a",
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any]:
        all_headers = {**({"Authorization": f"Bearer {key}"} if key else {}), **(headers or {})}
        async with self.session.request(method, self.address + path, json=body, headers=all_headers) as answer:
            return answer.status, await answer.json(content_type=None)

    async def link(self, user: str = "ada", *, key: str = "key-a") -> str:
        body = {"user_id": user, "public_token": await self.token()}
        status, linked = await self.ask("POST", "/v1/items", body, key=key)
        assert (status, linked["status"]) == (201, "linking")
        return str(linked["item_id"])

    async def token(self) -> str:
        plaid = Plaid(self.settings)
        try:
            return await plaid.sandbox_public_token("ins_109508")
        finally:
            await plaid.close()

    async def number(self, user: str = "ada") -> int:
        return int(await self.pool.fetchval("SELECT user_number FROM tartan.users WHERE user_id = $1", user))

    async def show(self, item_id: str, *, user: int, transactions: int = 0) -> list[bytes]:
        """Insert an Item, its account and transactions as projections does; return the transactions' own ids."""
        await self.pool.execute(
            f"""INSERT INTO {SCHEMA}.items (item_id, user_number, partition, state, head_offset, linked_at, known_at)
                VALUES ($1, $2, 0, 'active', 0, $3, $3)""",
            item_id,
            user,
            NOW,
        )
        await self.pool.execute(
            f"""INSERT INTO {SCHEMA}.accounts (item_id, account_id, user_number, type, currency, current, source,
                version, last_changeset, known_at)
                VALUES ($1, $2, $3, 'depository', 'USD', '1204.5000001', 'cached', 1, 0, $4)""",
            item_id,
            f"account-of-{item_id}",
            user,
            NOW,
        )
        ids: list[bytes] = [own_id(f"{item_id}-{number}") for number in range(transactions)]
        await self.pool.executemany(
            f"""INSERT INTO {SCHEMA}.transactions (own_id, user_number, item_id, transaction_id, own_id_inherited, version,
                transfers, first_changeset, last_changeset, known_at, payload, payload_schema, account_id, amount_value,
                amount_scale, currency, pending, date) VALUES ($1, $2, $3, $4, false, 1, 1, 0, 0, $5, $10, 1, $6, $7, 2,
                'USD', $8, $9)""",  # noqa: E501
            [
                (
                    own,
                    user,
                    item_id,
                    f"plaid-{number}",
                    NOW,
                    f"account-of-{item_id}",
                    -1999,
                    number % 2 == 0,
                    TODAY - datetime.timedelta(days=number // 3),
                    codec.encode(transaction(f"plaid-{number}", "-19.99")),
                )
                for number, own in enumerate(ids)
            ],
        )
        return ids

    async def attempt(
        self,
        item_id: str,
        *,
        generation: int,
        outcome: str = "unchanged",
        offset: int | None = None,
        fetched: tuple[int, int, int] = (0, 0, 0),
        error: str | None = None,
        cause: str = "manual",
    ) -> None:
        """Insert a finished sync run of an Item as streams does."""
        await self.pool.execute(
            """INSERT INTO tartan.sync_runs (item_id, started_at, duration_s, cause, added, modified, removed,
                outcome, generation, changeset_offset, error)
               VALUES ($1, tartan.clock(), 0.1, $2, $3, $4, $5, $6, $7, $8, $9::text::jsonb)""",
            item_id,
            cause,
            *fetched,
            outcome,
            generation,
            offset,
            error,
        )

    async def accept(
        self, item_id: str, offset: int, *, said: Sequence[str] = (), net: Sequence[str] = (), expired: bool = False
    ) -> None:
        """Insert an accepted changeset with the bank's changes (`said`) and its net events, as projections does."""
        row = await self.pool.fetchrow(
            "SELECT partition, user_number FROM tartan.sync_state WHERE item_id = $1", item_id
        )
        assert row is not None
        block = codec.encode_events([(kind, catalogue.TRANSACTION_EVENT, b"") for kind in net])
        counts = json.dumps({kind: said.count(kind) for kind in said})
        await self.pool.execute(
            f"""INSERT INTO {SCHEMA}.changesets (partition, source_offset, id, item_id, user_number, kind, type, cause,
                counts, net_events, digest, events, produced_at, known_at)
                VALUES ($1, $2, $3, $4, $5, 'chained', 'sync', '{{}}', $6::text::jsonb, $7, '', $8, $9, $9)""",
            row["partition"],
            offset,
            f"{item_id}-{offset}".encode(),
            item_id,
            row["user_number"],
            counts,
            len(net),
            None if expired else zstandard.compress(block),
            NOW,
        )
        await self.pool.execute(
            f"UPDATE {SCHEMA}.items SET head_offset = $2, last_sync_at = now() WHERE item_id = $1", item_id, offset
        )

    async def read_up_to(self, item_id: str, position: int) -> None:
        """Set the position of the Item's partition, below which readers see all changesets."""
        await self.pool.execute(
            f"""INSERT INTO {SCHEMA}.positions (partition, position)
                SELECT partition, $2 FROM tartan.sync_state WHERE item_id = $1
                ON CONFLICT (partition) DO UPDATE SET position = excluded.position""",
            item_id,
            position,
        )


@asynccontextmanager
async def serving_api(database: str, **changed: Any) -> AsyncIterator[Api]:
    async with simulator_running(Options(rate_limits="off")) as simulator:
        settings = Settings(
            postgres_dsn=database,
            port=0,
            api_keys="a:key-a,b:key-b",
            stream_secret="s" * 32,
            partitions=4,
            key_encryption_key=KEY,
            plaid_url=simulator.url,
            plaid_client_id="simulated-client",
            plaid_secret="simulated-secret",
            cron_secret=CRON_SECRET,
        )
        settings = settings.model_copy(update=changed)
        pool, plaid, hub = await open_pool(settings, stage="test"), Plaid(settings), Hub()
        appender = Appender(settings, client="gateway")
        gateway = Gateway(settings, pool=pool, plaid=plaid, hub=hub, appender=appender)
        try:
            async with serving(gateway, settings) as port, ClientSession() as session:
                yield Api(f"http://127.0.0.1:{port}", session, pool, settings)
        finally:
            await appender.stop()
            await plaid.close()
            await pool.close()


def assert_shape(document: dict[str, Any], name: str) -> None:
    assert set(document) == set(SCHEMAS[name]["properties"]), name


async def generation_is(api: Api, generation: int) -> None:
    async with asyncio.timeout(5):
        while await api.pool.fetchval("SELECT generation FROM tartan.sync_state") < generation:
            await asyncio.sleep(0.01)
