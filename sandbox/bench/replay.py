"""`tartan bench replay`: how fast a rebuild reads the log anew, beside the way on which the log was made.

A real Kafka with a log of the benchmark's writer, a real Postgres that flushes, live projectors that bring the live
version to the log's end, and then `tartan rebuild`: what it says of itself, and what it costs by process.
"""

import asyncio
import base64
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import asyncpg
import msgspec
from rich.console import Console

from projections.store.migrate import migrate
from runtime.kafka import topics
from runtime.kafka.clients import Appender, Outgoing, partition_of
from runtime.settings import Settings
from runtime.users.vault import Vault
from sandbox.bench.end_to_end import KAFKA, POSTGRES, BenchOptions, backfill
from sandbox.infra.cluster import Cluster, ClusterOptions
from sandbox.infra.generated_log import TENANT, GeneratedLog, data_key, name_of, transactions
from sandbox.infra.processes import Child, Command, start, tail
from sandbox.infra.stages import StageProcess
from sandbox.observe.resource_usage import Samples, sampled
from schemas.errors import Halt
from schemas.topics import CHANGESETS, full_name

UPDATE_ADDED = 5
"""Transactions of an update."""
LIVE_S_MAX, REBUILD_S_MAX = 1_800.0, 1_800.0
POLL_S = 0.1
PAGE_S = 0.15
"""What Plaid takes for a page, about: what a re-synchronisation waits for."""
KEY_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """A log of `transactions` over `items` and then `updates`, rebuilt by `processes`, each of `rounds` anew.

    `compares`: each round has a backfill of the whole way too, and the last one a re-synchronisation.
    """

    items: int
    transactions: int
    updates: int
    processes: int
    rounds: int
    compares: bool
    as_json: bool


async def run_replay(options: ReplayOptions) -> int:
    """Run it and print the result: of the first round, with the median speeds of all rounds."""
    console = Console(stderr=True)
    console.print(f"a log of {options.transactions:,} transactions in {options.items} Items")
    log = _log(options)
    replays, backfills = [], []
    for _ in range(options.rounds):
        # Each round begins with nothing, and neither runs beside the other.
        replays.append(await _replayed(options, log, console))
        if options.compares:
            backfills.append((await backfill(_whole_way(options), console))["transactions_per_s"])
    speeds = [replayed["transactions_per_s"] for replayed in replays]
    result = {
        **replays[0],
        "transactions_per_s": round(median(speeds)),
        "rounds": speeds,
        "digest_equal": all(replayed["digest_equal"] for replayed in replays),
        "options": asdict(options),
        "cores": os.cpu_count(),
    }
    if options.compares:
        ratios = [ours / theirs for ours, theirs in zip(speeds, backfills, strict=True)]
        console.print(f"a re-synchronisation, {PAGE_S * 1e3:g} ms a page")
        resync = await backfill(_whole_way(options, latency_s=PAGE_S), console)
        result |= {
            "ratio_to_end_to_end": round(median(ratios), 2),
            "end_to_end_transactions_per_s": round(median(backfills)),
            "resync_transactions_per_s": resync["transactions_per_s"],
        }
    if options.as_json:
        print(json.dumps(result))
    else:
        console.print_json(json.dumps(result))
    return 0


def _whole_way(options: ReplayOptions, *, latency_s: float = 0.0) -> BenchOptions:
    return BenchOptions(
        items=options.items,
        transactions=options.transactions,
        rate=0.0,
        seconds=0.0,
        projectors=options.processes,
        as_json=options.as_json,
        latency_s=latency_s,
    )


def _log(options: ReplayOptions) -> GeneratedLog:
    log, each = GeneratedLog(), max(1, options.transactions // options.items)
    for user in range(1, options.items + 1):
        log.link(user)
        log.history(user, transactions(each, user))
    for number in range(options.updates):
        log.update(1 + number % options.items, transactions(UPDATE_ADDED, options.items + 1 + number), (), f"{number}")
    return log


async def _replayed(options: ReplayOptions, log: GeneratedLog, console: Console) -> dict[str, Any]:
    console.print("starting Kafka and Postgres")
    async with Cluster(ClusterOptions(kafka=KAFKA, postgres=POSTGRES)) as cluster:
        environment = {
            "TARTAN_KAFKA_ADDRESS": cluster.kafka_address,
            "TARTAN_POSTGRES_DSN": cluster.postgres_dsn,
            "TARTAN_KEY_ENCRYPTION_KEY": base64.b64encode(os.urandom(KEY_BYTES)).decode(),
            "TARTAN_LOG_FORMAT": "json",
        }
        settings = Settings.model_validate({name[7:].lower(): value for name, value in environment.items()})
        await asyncio.gather(asyncio.to_thread(migrate, cluster.postgres_dsn), topics.apply(settings))
        connection = await asyncpg.connect(cluster.postgres_dsn)
        try:
            await _own(connection, settings, range(1, options.items + 1))
            await _fill(settings, log)
            with tempfile.TemporaryDirectory() as folder:
                console.print("live projectors")
                await _project(connection, log, environment, Path(folder), options.processes)
                await connection.execute("CHECKPOINT")
                console.print("rebuild")
                told, samples = await _rebuild(cluster, environment, Path(folder), options.processes)
        finally:
            await connection.close()
    return _result(told, samples)


async def _own(connection: asyncpg.Connection, settings: Settings, users: Sequence[int]) -> None:
    """Make the users to whom the log's records belong, with their keys."""
    vault = Vault(settings.master_key())
    keys = [(user, vault.wrap_data_key(data_key(user), user=user, generation=1)) for user in users]
    await connection.executemany(_USER, [(user, TENANT, name_of(user)) for user in users])
    await connection.executemany(_KEY, keys)


async def _fill(settings: Settings, log: GeneratedLog) -> None:
    """Append the log to the topic, each record to the partition of its user."""
    topic = full_name(CHANGESETS, settings.topic_prefix)
    appender = Appender(settings, client="bench")
    await appender.start()
    try:
        for record in log.records:
            assert record.key is not None
            number = partition_of(record.key, settings.partitions)
            await appender.append(topic, Outgoing(record.key, record.value), partition=number)
    finally:
        await appender.stop()


async def _project(
    connection: asyncpg.Connection, log: GeneratedLog, environment: Mapping[str, str], folder: Path, processes: int
) -> None:
    """Let live projectors read the log, and wait until all of it is published."""
    stages = [
        StageProcess(
            f"projections-{number}",
            arguments=["projections"],
            folder=folder,
            environment={**environment, "TARTAN_INSTANCE_ID": str(number)},
        )
        for number in range(1, processes + 1)
    ]
    for stage in stages:
        stage.start()
    try:
        await asyncio.gather(*(stage.ready() for stage in stages))
        deadline = time.monotonic() + LIVE_S_MAX
        while await connection.fetchval(_PUBLISHED) < len(log.records):
            if time.monotonic() > deadline:
                raise Halt(f"the live projectors are not done after {LIVE_S_MAX:g} s")
            await asyncio.sleep(POLL_S)
    finally:
        await asyncio.gather(*(stage.stop() for stage in stages))


async def _rebuild(
    cluster: Cluster, environment: Mapping[str, str], folder: Path, processes: int
) -> tuple[dict[str, Any], Samples]:
    """Run `tartan rebuild`, and give what it told with what it cost."""
    arguments = ["rebuild", "--no-swap", "--json", "--processes", str(processes)]
    servers = {
        name: server.pid for name, server in (("kafka", cluster.kafka), ("postgres", cluster.postgres)) if server
    }
    child = start(
        Command(
            name="rebuild",
            arguments=[sys.executable, "-m", "cli", *arguments],
            log=folder / "rebuild.log",
            environment={**os.environ, **environment},
        )
    )
    samples = await sampled(child, servers, timeout_s=REBUILD_S_MAX)
    return _told(child, folder / "rebuild.log"), samples


def _told(child: Child, log: Path) -> dict[str, Any]:
    """The last line of the rebuild. Raises: Halt, where it failed; a difference is told, not raised."""
    lines = log.read_text("utf-8").splitlines()
    try:
        told: dict[str, Any] = msgspec.json.decode(lines[-1] if lines else "")
    except msgspec.DecodeError:
        told = {}
    if "digest_equal" not in told:
        raise Halt(f"the rebuild failed with code {child.code}. The end of its log:\n{tail(log)}")
    return told


def _result(told: Mapping[str, Any], samples: Samples) -> dict[str, Any]:
    count, phases = told["transactions_replayed"], told["seconds_by_phase"]
    return {
        "transactions": count,
        "transactions_per_s": told["transactions_per_s"],
        "load_transactions_per_s": round(count / phases["load"]),
        "seconds": told["seconds"],
        "seconds_by_phase": phases,
        "events_replayed": told["events_replayed"],
        "digest_equal": told["digest_equal"],
        "rss_mib": samples.rss_mib,
        "rss_mib_begin": samples.rss_mib_begin,
        "rss_mib_end": samples.rss_mib_end,
        "cpu_us_per_transaction": {name: round(spent * 1e6 / count, 1) for name, spent in samples.cpu_s.items()},
    }


_USER = "INSERT INTO tartan.users (user_number, tenant, user_id) VALUES ($1, $2, $3)"
_KEY = "INSERT INTO tartan.user_keys (user_number, generation, wrapped, state) VALUES ($1, 1, $2, 'active')"
_PUBLISHED = "SELECT coalesce(sum(published), 0)::bigint FROM tartan.published_checkpoints"
