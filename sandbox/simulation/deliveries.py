"""Plaid's webhooks on their way into the log, as ingest writes them."""

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
"""Longest sleep without a look at what Plaid has to send; a wake-up normally ends it."""
INSTANT_S = 0.001
"""Shortest one: moments are kept in microseconds, and the loop's time is not."""


async def deliver(installation: Installation, answers: Callable[[], bool], rng: random.Random) -> None:
    """Let Plaid live, and write what it sends into the log, for ever. `answers`: whether ingest does now."""
    plaid, woken = installation.plaid, asyncio.Event()
    plaid.plaid.on_wake = woken.set
    while True:
        for sent in plaid.webhooks(installation.now()):
            if not answers():
                plaid.record_answer(sent, status=rng.choice((UNANSWERED, 429)))
                continue
            _write(installation, sent)
            if rng.random() < 0.02:
                # In the log, but Plaid did not hear of it: it comes again.
                installation.hazards.counts["webhook_answer_lost"] += 1
                plaid.record_answer(sent, status=UNANSWERED)
            else:
                plaid.record_answer(sent, status=200)
        due_at = plaid.next_due_at()
        wait_s = IDLE_S if due_at is None else (due_at - installation.now()).total_seconds()
        woken.clear()
        try:
            async with asyncio.timeout(min(max(wait_s, INSTANT_S), IDLE_S)):
                await woken.wait()
        except TimeoutError:
            continue


def _write(installation: Installation, sent: WebhookAttempt) -> None:
    record = Webhook(
        to_micros(installation.now()), sent.body, hashlib.sha256(sent.body).digest(), sent.jwt, sent.jwk.decode()
    )
    key = sent.delivery.webhook.item_id.encode()
    installation.broker.topic("webhooks").put(partition_of(key, PARTITIONS), Outgoing(key, codec.encode(record)))
