"""The examples of the README do what the README claims."""

import asyncio
import json
import os
import re
import sys

from tests.acceptance.conftest import Running
from tests.support.paths import ROOT

README = (ROOT / "README.md").read_text("utf-8")
WAIT_S_MAX = 60.0


def example(language: str) -> str:
    """Return the one code block of a language."""
    [block] = re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return block


async def test_the_request_of_the_readme_links_an_item_and_its_consumer_reads_the_transactions(
    running: Running, topic_prefix: str
) -> None:
    [item] = await running.bank.make_items("ada", transactions=40)
    environment = {
        **os.environ,
        "TARTAN_GATEWAY_URL": running.stack.gateway_url,
        "TARTAN_API_KEY": running.stack.secrets.api_key,
        "PUBLIC_TOKEN": item["public_token"],
    }
    program = example("python").replace("tartan.transactions", f"{topic_prefix}transactions")

    request = await asyncio.create_subprocess_exec(
        "sh", "-c", example("sh"), env=environment, stdout=asyncio.subprocess.PIPE
    )
    answer = json.loads((await request.communicate())[0])
    consumer = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        running.stack.settings().kafka_address,
        running.stack.gateway_url,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert consumer.stdout is not None
        events = [json.loads(await asyncio.wait_for(consumer.stdout.readline(), WAIT_S_MAX)) for _ in range(40)]
    finally:
        consumer.kill()
        await consumer.wait()

    assert answer["item_id"] == item["item_id"]
    assert {kind for kind, _ in events} == {"transaction.added"}
    assert all(re.fullmatch(r"-?\d+(\.\d+)?", amount) for _, amount in events)
