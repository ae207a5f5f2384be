"""What a person needs after a failure: each process's log, the log of changesets and webhooks, the tables, the run."""

import asyncio
import base64
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import asyncpg
from aiokafka.errors import KafkaError

from projections import digests
from projections.tables import SCHEMA
from sandbox.chaos.schedule import Run
from sandbox.chaos.topics import whole
from sandbox.chaos.world import ChaosWorld
from sandbox.cluster import DATABASE
from schemas.errors import TartanError
from schemas.topics import CHANGESETS, PUBLIC, WEBHOOKS

PREFIX = "tartan-chaos-failure-"
KEEP_S_MAX = 60.0


async def keep(world: ChaosWorld, run: Run, problems: Sequence[str], journal: Sequence[str]) -> Path:
    """Copy it all into a new folder, which nobody clears away, and give its path; what cannot be had is left out."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    (folder / "problems.txt").write_text("".join(f"{problem}\n" for problem in problems), "utf-8")
    (folder / "journal.txt").write_text("".join(f"{line}\n" for line in journal), "utf-8")
    (folder / "run.json").write_text(json.dumps(asdict(run), indent=2), "utf-8")
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
        except (TartanError, KafkaError, OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            with (folder / "problems.txt").open("a") as file:
                file.write(f"not kept: {type(error).__name__}: {error}\n")
    return folder


async def _topics(world: ChaosWorld, folder: Path) -> None:
    """One JSON object a record."""
    with (folder / "topics.jsonl").open("w") as file:
        for (topic, partition), records in (await whole(world.settings(), (CHANGESETS, WEBHOOKS, *PUBLIC))).items():
            for record in records:
                shown = {
                    "topic": topic, "partition": partition, "offset": record.offset, "timestamp": record.timestamp,
                    "key": None if record.key is None else record.key.decode(),
                    "headers": {name: value.decode(errors="replace") for name, value in record.headers},
                    "value": base64.b64encode(record.value or b"").decode(),
                }  # fmt: skip
                file.write(json.dumps(shown) + "\n")


async def _tables(world: ChaosWorld, folder: Path) -> None:
    """The derived tables, and those that say what is due and parked."""
    assert world.cluster.postgres is not None
    dsn = world.cluster.postgres.dsn(DATABASE)
    connection = await asyncpg.connect(dsn, timeout=KEEP_S_MAX, server_settings={"search_path": SCHEMA})
    try:
        derived = await digests.full_rows(connection)
        tables = {name: [str(row) for row in rows] for name, rows in derived.items()}
        for name in ("sync_state", "heads", "positions", "floors", "parkings", "dead_letters", "sync_attempts"):
            tables[f"tartan.{name}"] = [
                str(dict(row)) for row in await connection.fetch(f"SELECT * FROM tartan.{name}")
            ]
    finally:
        await connection.close()
    (folder / "tables.json").write_text(json.dumps(tables, indent=1), "utf-8")
