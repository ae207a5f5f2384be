"""What a person needs after a failure: each process's log, the log of changesets and webhooks, the tables, the run."""

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
from sandbox.observe.published_events import whole
from schemas.errors import TartanError
from schemas.topics import CHANGESETS, PUBLIC, WEBHOOKS

PREFIX = "tartan-chaos-failure-"
KEEP_S_MAX = 60.0
PRIMARY = (
    "sync_state",
    "heads",
    "positions",
    "published_checkpoints",
    "quarantines",
    "dead_letters",
    "sync_runs",
    "rebuilds",
)


async def keep(world: Stack, run: Mapping[str, Any], problems: Sequence[str], journal: Sequence[str]) -> Path:
    """Copy it all into a new folder, which nobody clears away, and give its path; what cannot be had is left out."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    (folder / "problems.txt").write_text("".join(f"{problem}\n" for problem in problems), "utf-8")
    (folder / "journal.txt").write_text("".join(f"{line}\n" for line in journal), "utf-8")
    (folder / "run.json").write_text(json.dumps(run, indent=2), "utf-8")
    for log in world.folder.glob("*.log"):
        shutil.copy(log, folder)
    for name, server in (("kafka", world.cluster.kafka), ("postgres", world.cluster.postgres)):
        if server is not None and server.log.exists():
            shutil.copy(server.log, folder / f"{name}.log")
    # With the keys of this sandbox, which protect nobody's data, the changesets can be opened again.
    shutil.copy(world.folder / "secrets.json", folder)
    for work in (_topics(world, folder), _tables(world, folder)):
        try:
            async with asyncio.timeout(KEEP_S_MAX):
                await work
        except (TartanError, KafkaError, *POSTGRES_ERRORS) as error:
            with (folder / "problems.txt").open("a") as file:
                file.write(f"not kept: {type(error).__name__}: {error}\n")
    return folder


async def _topics(world: Stack, folder: Path) -> None:
    """One JSON object a record."""
    with (folder / "topics.jsonl").open("w") as file:
        for (topic, partition), records in (await whole(world.settings(), (CHANGESETS, WEBHOOKS, *PUBLIC))).items():
            for record in records:
                shown = {
                    "topic": topic,
                    "partition": partition,
                    "offset": record.offset,
                    "timestamp": record.timestamp,
                    "key": None if record.key is None else record.key.decode(),
                    "headers": {name: value.decode(errors="replace") for name, value in record.headers},
                    "value": base64.b64encode(record.value or b"").decode(),
                }
                file.write(json.dumps(shown) + "\n")


async def _tables(world: Stack, folder: Path) -> None:
    """The derived tables of each version, and those that say what is due and quarantined."""
    connection = await asyncpg.connect(world.postgres_dsn, timeout=KEEP_S_MAX)
    try:
        tables: dict[str, list[str]] = {}
        for schema in (SCHEMA, NEXT, OLD):
            if await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", f"{schema}.positions"):
                await connection.execute(f"SET search_path = {schema}")
                derived = await digests.full_rows(connection)
                tables |= {f"{schema}.{name}": [str(row) for row in rows] for name, rows in derived.items()}
        for name in PRIMARY:
            rows = await connection.fetch(f"SELECT * FROM tartan.{name}")
            tables[f"tartan.{name}"] = [str(dict(row)) for row in rows]
    finally:
        await connection.close()
    (folder / "tables.json").write_text(json.dumps(tables, indent=1), "utf-8")
