"""Save the state of a stack after a failure: logs of processes, records of topics, rows of tables, the run."""

import asyncio
import base64
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import asyncpg
from aiokafka.errors import KafkaError

from projections.store.tables import NEXT, OLD, SCHEMA
from projections.verify import digests
from runtime.postgres.errors import POSTGRES_ERRORS
from sandbox.infra.stack import Stack
from sandbox.observe.published_events import read_topics
from schemas.errors import TartanError
from schemas.topics import CHANGESETS, PUBLIC, WEBHOOKS

PREFIX = "tartan-chaos-failure-"
SAVE_S_MAX = 60.0
CONTROL_TABLES = (
    "sync_state",
    "heads",
    "positions",
    "published_checkpoints",
    "quarantines",
    "dead_letters",
    "sync_runs",
    "rebuilds",
)


async def save_failure(stack: Stack, run: Mapping[str, Any], problems: Sequence[str], journal: Sequence[str]) -> Path:
    """Copy everything that can be read into a new folder, which is not removed, and return its path."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    (folder / "problems.txt").write_text("".join(f"{problem}\n" for problem in problems), "utf-8")
    (folder / "journal.txt").write_text("".join(f"{line}\n" for line in journal), "utf-8")
    (folder / "run.json").write_text(json.dumps(run, indent=2), "utf-8")
    for log in stack.folder.glob("*.log"):
        shutil.copy(log, folder)
    for name, server in stack.cluster.servers.items():
        if server.log.exists():
            shutil.copy(server.log, folder / f"{name}.log")
    # With the keys of this sandbox, which protect nobody's data, the changesets can be opened again.
    shutil.copy(stack.folder / "secrets.json", folder)
    for work in (_save_topics(stack, folder), _save_tables(stack, folder)):
        try:
            async with asyncio.timeout(SAVE_S_MAX):
                await work
        except (TartanError, KafkaError, *POSTGRES_ERRORS) as error:
            with (folder / "problems.txt").open("a") as file:
                file.write(f"not saved: {type(error).__name__}: {error}\n")
    return folder


async def _save_topics(stack: Stack, folder: Path) -> None:
    topics = await read_topics(stack.settings(), (CHANGESETS, WEBHOOKS, *PUBLIC))
    with (folder / "topics.jsonl").open("w") as file:
        for (topic, partition), records in topics.items():
            for record in records:
                line = {
                    "topic": topic,
                    "partition": partition,
                    "offset": record.offset,
                    "timestamp": record.timestamp,
                    "key": None if record.key is None else record.key.decode(),
                    "headers": {name: value.decode(errors="replace") for name, value in record.headers},
                    "value": base64.b64encode(record.value or b"").decode(),
                }
                file.write(json.dumps(line) + "\n")


async def _save_tables(stack: Stack, folder: Path) -> None:
    connection = await asyncpg.connect(stack.postgres_dsn, timeout=SAVE_S_MAX)
    try:
        tables: dict[str, list[str]] = {}
        for schema in (SCHEMA, NEXT, OLD):
            if await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", f"{schema}.positions"):
                await connection.execute(f"SET search_path = {schema}")
                derived = await digests.full_rows(connection)
                tables |= {f"{schema}.{name}": [str(row) for row in rows] for name, rows in derived.items()}
        for name in CONTROL_TABLES:
            rows = await connection.fetch(f"SELECT * FROM tartan.{name}")
            tables[f"tartan.{name}"] = [str(dict(row)) for row in rows]
    finally:
        await connection.close()
    (folder / "tables.json").write_text(json.dumps(tables, indent=1), "utf-8")
