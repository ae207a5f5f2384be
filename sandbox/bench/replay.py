"""`tartan bench replay`: how fast a rebuild reads the log, compared with the backfill that made the log.

A real Kafka with a generated log, a real Postgres that flushes, live projectors that bring the live version to the
log's end, and then `tartan rebuild` with its own figures and the CPU time and memory of its processes.
"""

import asyncio
import base64
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import asyncpg
import msgspec
from rich.console import Console

from projections.store.migrate import migrate
from runtime.kafka import topics
from runtime.kafka.clients import Appender
from sandbox.bench.end_to_end import KAFKA, POSTGRES, BenchOptions, measure
from sandbox.bench.result import print_result
from sandbox.infra.cluster import Cluster, ClusterOptions
from sandbox.infra.generated_log import GeneratedLog, append_records, create_users, transactions
from sandbox.infra.processes import tail
from sandbox.infra.stack import settings_from
from sandbox.infra.stages import StageProcess
from sandbox.observe.rebuild_process import RebuildProcess
from sandbox.observe.resource_usage import Samples, sample_until_end
from schemas.errors import Halt

UPDATE_ADDED = 5
"""Transactions of an update."""
LIVE_S_MAX, REBUILD_S_MAX = 1_800.0, 1_800.0
POLL_S = 0.1
PAGE_S = 0.15
"""Plaid's usual time for a page, which a full resync waits for."""
KEY_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """A log of `transactions` over `items` and then `updates`, rebuilt by `processes`, in each of `rounds` anew.

    `compares`: each round has a backfill of the whole installation too, and the last one a full resync.
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
    log = _generate(options)
    replays, backfills = [], []
    for _ in range(options.rounds):
        # Each round starts empty, and neither runs beside the other.
        replays.append(await _replay(options, log, console))
        if options.compares:
            backfills.append((await _backfill(options, console))["transactions_per_s"])
    speeds = [replay["transactions_per_s"] for replay in replays]
    result = {
        **replays[0],
        "transactions_per_s": round(median(speeds)),
        "rounds": speeds,
        "digest_equal": all(replay["digest_equal"] for replay in replays),
        "options": asdict(options),
        "cores": os.cpu_count(),
    }
    if options.compares:
        ratios = [ours / theirs for ours, theirs in zip(speeds, backfills, strict=True)]
        console.print(f"a full resync, {PAGE_S * 1e3:g} ms a page")
        resync = await _backfill(options, console, latency_s=PAGE_S)
        result |= {
            "ratio_to_end_to_end": round(median(ratios), 2),
            "end_to_end_transactions_per_s": round(median(backfills)),
            "resync_transactions_per_s": resync["transactions_per_s"],
        }
    print_result(result, console, as_json=options.as_json)
    return 0


async def _backfill(options: ReplayOptions, console: Console, *, latency_s: float = 0.0) -> dict[str, Any]:
    bench_options = BenchOptions(
        items=options.items,
        transactions=options.transactions,
        rate=0.0,
        seconds=0.0,
        projectors=options.processes,
        as_json=options.as_json,
        latency_s=latency_s,
    )
    return await measure(bench_options, console, with_webhooks=False)


def _generate(options: ReplayOptions) -> GeneratedLog:
    log, each = GeneratedLog(), max(1, options.transactions // options.items)
    for user in range(1, options.items + 1):
        log.link(user)
        log.history(user, transactions(each, user))
    for number in range(options.updates):
        log.update(1 + number % options.items, transactions(UPDATE_ADDED, options.items + 1 + number), (), f"{number}")
    return log


async def _replay(options: ReplayOptions, log: GeneratedLog, console: Console) -> dict[str, Any]:
    console.print("starting Kafka and Postgres")
    async with Cluster(ClusterOptions(kafka=KAFKA, postgres=POSTGRES)) as cluster:
        environment = {
            "TARTAN_KAFKA_ADDRESS": cluster.kafka_address,
            "TARTAN_POSTGRES_DSN": cluster.postgres_dsn,
            "TARTAN_KEY_ENCRYPTION_KEY": base64.b64encode(os.urandom(KEY_BYTES)).decode(),
            "TARTAN_LOG_FORMAT": "json",
        }
        settings = settings_from(environment)
        await asyncio.gather(asyncio.to_thread(migrate, cluster.postgres_dsn), topics.apply(settings))
        connection = await asyncpg.connect(cluster.postgres_dsn)
        appender = Appender(settings, client="bench")
        try:
            await create_users(connection, settings, range(1, options.items + 1))
            await appender.start()
            await append_records(appender, settings, log.records)
            with tempfile.TemporaryDirectory() as folder:
                console.print("live projectors")
                await _project(connection, len(log.records), environment, Path(folder), options.processes)
                await connection.execute("CHECKPOINT")
                console.print("rebuild")
                return await _rebuild(cluster, environment, Path(folder), options.processes)
        finally:
            await appender.stop()
            await connection.close()


async def _project(
    connection: asyncpg.Connection, records: int, environment: Mapping[str, str], folder: Path, processes: int
) -> None:
    """Run live projectors until they have published all records of the log."""
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
        while await connection.fetchval(_PUBLISHED) < records:
            if time.monotonic() > deadline:
                raise Halt(f"the live projectors are not done after {LIVE_S_MAX:g} s")
            await asyncio.sleep(POLL_S)
    finally:
        await asyncio.gather(*(stage.stop() for stage in stages))


async def _rebuild(cluster: Cluster, environment: Mapping[str, str], folder: Path, processes: int) -> dict[str, Any]:
    """Run `tartan rebuild` and return its result with its resource usage.

    Raises: Halt, where it printed no result; a version that differs is a result (`digest_equal`).
    """
    process = RebuildProcess("--no-swap", "--processes", str(processes), environment=environment, folder=folder)
    servers = {name: server.pid for name, server in cluster.servers.items()}
    samples = await sample_until_end(process.child, servers, timeout_s=REBUILD_S_MAX)
    lines = process.log.read_text("utf-8").splitlines()
    try:
        rebuilt: dict[str, Any] = msgspec.json.decode(lines[-1] if lines else "")
    except msgspec.DecodeError:
        rebuilt = {}
    if "digest_equal" not in rebuilt:
        raise Halt(f"the rebuild failed with code {process.child.code}. The end of its log:\n{tail(process.log)}")
    return _figures(rebuilt, samples)


def _figures(rebuilt: Mapping[str, Any], samples: Samples) -> dict[str, Any]:
    count, phases = rebuilt["transactions_replayed"], rebuilt["seconds_by_phase"]
    return {
        "transactions": count,
        "transactions_per_s": rebuilt["transactions_per_s"],
        "load_transactions_per_s": round(count / phases["load"]),
        "seconds": rebuilt["seconds"],
        "seconds_by_phase": phases,
        "events_replayed": rebuilt["events_replayed"],
        "digest_equal": rebuilt["digest_equal"],
        "rss_mib": samples.rss_mib,
        "rss_mib_begin": samples.rss_mib_begin,
        "rss_mib_end": samples.rss_mib_end,
        "cpu_us_per_transaction": {name: round(used * 1e6 / count, 1) for name, used in samples.cpu_s.items()},
    }


_PUBLISHED = "SELECT coalesce(sum(published), 0)::bigint FROM tartan.published_checkpoints"
