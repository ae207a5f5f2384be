"""What is personal is sealed: no planted marker and no token in any topic's clear part, log or metric."""

from pathlib import Path

import aiohttp

from sandbox.observe.published_events import read_topics
from schemas.topics import CHANGESETS, DEAD_LETTERS, WEBHOOKS
from tests.acceptance.conftest import Running

QUIET_S_MAX = 120.0
MARKER_LENGTH_MIN = 6
"""Shorter names stand in any text by chance."""


async def test_nothing_personal_is_readable_in_clear_topics_logs_and_metrics(running: Running, tmp_path: Path) -> None:
    [item] = await running.bank.make_items("grace-hopper-the-user", transactions=300)
    await running.application.link("grace-hopper-the-user", item["public_token"])
    await running.bank.step(item["item_id"], changes=20)
    await running.bank.fault(kind="item_error", item_id=item["item_id"], code="ITEM_LOGIN_REQUIRED")
    await running.observer.until_quiet(running.bank, timeout_s=QUIET_S_MAX)

    markers = await personal_markers(running)
    assert len(markers) > 50
    clear = await clear_topics(running)
    logs = b"".join(path.read_bytes() for path in tmp_path.glob("*.log") if "simulator" not in path.name)
    metrics = await scraped(running)

    assert len(clear) > 1000
    assert [marker for marker in markers if marker in clear] == []
    assert [marker for marker in markers if marker in logs] == []
    assert [marker for marker in [*markers, item["item_id"].encode()] if marker in metrics] == []


async def personal_markers(running: Running) -> list[bytes]:
    """Names, merchants, account names and ids of the bank's truth, the application's user id, beginnings of tokens."""
    truth = await running.bank.truth()
    rows = [row for item in truth for row in item["transactions"]]
    names = {row[name] for row in rows for name in ("name", "merchant_name", "original_description", "transaction_id")}
    accounts = {
        row[name] for item in truth for row in item["accounts"] for name in ("name", "official_name", "account_id")
    }
    secrets = {"grace-hopper-the-user", "access-sandbox", "public-sandbox", running.stack.secrets.api_key}
    return [text.encode() for text in names | accounts | secrets if text and len(text) >= MARKER_LENGTH_MIN]


async def clear_topics(running: Running) -> bytes:
    """All bytes of the topics that are kept: keys, values and headers."""
    found = await read_topics(running.stack.settings(), (WEBHOOKS, CHANGESETS, DEAD_LETTERS))
    return b"".join(
        part
        for records in found.values()
        for record in records
        for part in (record.key or b"", record.value, *(value for _, value in record.headers))
    )


async def scraped(running: Running) -> bytes:
    """The metrics of every stage."""
    found = []
    async with aiohttp.ClientSession() as session:
        for stage in running.stack.stages.values():
            if stage.name != "plaid-simulator":
                async with session.get(stage.metrics_url) as answer:
                    found.append(await answer.read())
    return b"".join(found)
