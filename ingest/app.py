"""Compose the stage `ingest`: serve the webhook endpoint, and probe Kafka for /readyz.

The way of one webhook through this stage:

1. `server` reads the token and the body of the POST, within bounds of size and time.
2. `tokens` parses the token; `verification` compares the body's hash with it.
3. `keys` returns Plaid's public key from its cache; `verification` checks the signature.
4. `webhook_record` checks time and environment and builds the record.
5. `server` appends the record to the topic `webhooks`, and answers 200 once the log has it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from aiohttp import web

from ingest.keys import FetchKey, KeyCache
from ingest.server import Endpoint
from runtime import logs
from runtime.kafka.clients import Appender, LogEnds
from runtime.lifecycle import Running
from runtime.plaid.client import Plaid, PlaidRefused
from runtime.settings import Settings
from schemas.errors import Quarantine, Retry
from schemas.topics import WEBHOOKS, full_name

DRAIN_S = 10.0
"""A stop waits this long for requests, then for appends: Plaid gives up on a request after 10 s anyway."""
PROBE_S = 5.0
"""Time between two probes of Kafka for /readyz, and their timeout."""
UNKNOWN_KEY_CODES = frozenset({"INVALID_WEBHOOK_VERIFICATION_KEY_ID", "INVALID_FIELD"})
"""Plaid's codes for a key id that it never gave. Any other refusal is about us, and no reason to answer 401."""

_log = logs.logger(__name__)


@asynccontextmanager
async def stage(settings: Settings) -> AsyncIterator[Running]:
    """Serve the webhook endpoint. It starts without Kafka too: an honest 429 is better than no answer."""
    topic = full_name(WEBHOOKS, settings.topic_prefix)
    appender, plaid = Appender(settings, client="ingest"), Plaid(settings)
    keys, readiness = KeyCache(fetch_key(plaid)), _Readiness(settings, topic)
    endpoint = Endpoint(settings, keys=keys, append=partial(appender.append, topic))
    probe = asyncio.create_task(readiness.watch())
    try:
        async with serving(endpoint, settings):
            yield Running("ingest", lambda: readiness.reasons, asyncio.get_running_loop().create_future())
    finally:
        probe.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await probe
        await endpoint.drain(timeout_s=DRAIN_S)
        await keys.close()
        await appender.stop()
        await plaid.close()


@asynccontextmanager
async def serving(endpoint: Endpoint, settings: Settings) -> AsyncIterator[int]:
    """Listen on the public port for a block, and yield the port; at the end no new request is accepted."""
    # auto_decompress: the signature covers the bytes as they were sent, and a bomb must not be unpacked.
    runner = web.AppRunner(
        endpoint.app(), access_log=None, handle_signals=False, auto_decompress=False, shutdown_timeout=DRAIN_S
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.host, settings.port)
        await site.start()
        port = runner.addresses[0][1]
        _log.info("webhook endpoint", host=settings.host, port=port)
        yield port
    finally:
        await runner.cleanup()


def fetch_key(plaid: Plaid) -> FetchKey:
    """Return a function that requests a key from Plaid with the errors of FetchKey."""

    async def fetch(key_id: str) -> bytes | None:
        try:
            return await plaid.verification_key(key_id)
        except PlaidRefused as refused:
            if refused.error_code in UNKNOWN_KEY_CODES:
                return None
            raise Retry(f"Plaid gives no webhook key: {refused.error_code}") from refused
        except Quarantine as error:
            raise Retry("Plaid's answer holds no webhook key") from error

    return fetch


class _Readiness:
    """Readiness of this process: Kafka answers for the topic `webhooks`."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self._settings = settings
        self._topic = topic
        self.reasons = ["Kafka: not asked yet"]

    async def watch(self) -> None:
        """Probe Kafka for ever, over one connection until it fails."""
        while True:
            ends = LogEnds(self._settings)
            try:
                await asyncio.wait_for(ends.start(), PROBE_S)
                while True:
                    await asyncio.wait_for(ends.ends(self._topic, range(self._settings.partitions)), PROBE_S)
                    self.reasons = []
                    await asyncio.sleep(PROBE_S)
            except Exception as error:  # noqa: BLE001 - nobody awaits this task: its end would go unnoticed
                self.reasons = [f"Kafka: {str(error) or type(error).__name__}"]
            finally:
                await ends.stop()
            await asyncio.sleep(PROBE_S)
