"""Write Plaid's webhooks into the log, as ingest does."""

import asyncio
import hashlib
import random
from collections.abc import Callable

from runtime.kafka.clients import Outgoing, partition_of
from sandbox.simulation.engine.installation import PARTITIONS, Installation
from sandbox.simulator.inprocess import UNANSWERED, WebhookAttempt
from schemas.encoding import codec
from schemas.log.records import Webhook
from schemas.times import to_micros

IDLE_S = 3600.0
"""Longest sleep; a wake-up normally ends it."""
INSTANT_S = 0.001
"""Shortest sleep: Plaid's times are in microseconds, and the loop's time is not."""


async def deliver(installation: Installation, is_ingest_up: Callable[[], bool], rng: random.Random) -> None:
    """Run the simulated Plaid and write its webhooks into the log, for ever."""
    plaid, wake = installation.plaid, asyncio.Event()
    plaid.plaid.on_wake = wake.set
    while True:
        for attempt in plaid.webhooks(installation.now()):
            if not is_ingest_up():
                plaid.record_answer(attempt, status=rng.choice((UNANSWERED, 429)))
                continue
            _write(installation, attempt)
            if rng.random() < 0.02:
                # The webhook is in the log, but its answer is lost: Plaid sends it again.
                installation.faults.counts["webhook_answer_lost"] += 1
                plaid.record_answer(attempt, status=UNANSWERED)
            else:
                plaid.record_answer(attempt, status=200)
        due_at = plaid.next_due_at()
        wait_s = IDLE_S if due_at is None else (due_at - installation.now()).total_seconds()
        wake.clear()
        try:
            async with asyncio.timeout(min(max(wait_s, INSTANT_S), IDLE_S)):
                await wake.wait()
        except TimeoutError:
            continue


def _write(installation: Installation, attempt: WebhookAttempt) -> None:
    now, digest = to_micros(installation.now()), hashlib.sha256(attempt.body).digest()
    record = Webhook(now, attempt.body, digest, attempt.jwt, attempt.jwk.decode())
    key = attempt.delivery.webhook.item_id.encode()
    installation.broker.topic("webhooks").put(partition_of(key, PARTITIONS), Outgoing(key, codec.encode(record)))
