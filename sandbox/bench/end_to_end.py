"""`tartan bench end-to-end`: how fast the whole way is here, and what each part of it costs."""

import asyncio
import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import asyncpg
import psutil
from rich.console import Console

from projections.store.tables import SCHEMA
from sandbox.bench.peer import Peer, Round, backfill_load, compared
from sandbox.infra.clients import Application, Bank
from sandbox.infra.cluster import ClusterOptions
from sandbox.infra.kafka import KafkaOptions
from sandbox.infra.postgres import PostgresOptions
from sandbox.infra.stack import PROJECTIONS, Stack, StackOptions
from sandbox.observe.browsers import Watch
from sandbox.observe.observer import Observer, observing

BACKFILL_S_MAX = 300.0
TRICKLE_CHANGES = 5
WARM_UP_SHARE = 0.1
"""The first tenth of the webhooks warms the processes up, as in the peer's benchmark."""
WATCHED_USERS_MAX = 200

# A Postgres that flushes, as in production. The JVM starts cold and lives a minute: C1 alone costs it least, and an
# optimising one would spend more on compiling than it saves.
KAFKA = KafkaOptions()
POSTGRES = PostgresOptions()
SIMULATOR = ("--ready", "--no-validate-requests", "--rate-limits", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """Backfill of `transactions` over `items`, then webhooks at `rate` a second for `seconds`.

    The bank takes `latency_s` for each answer.
    """

    items: int
    transactions: int
    rate: float
    seconds: float
    projectors: int
    as_json: bool
    peer: Path | None = None
    rounds: int = 1
    latency_s: float = 0.0


async def run_end_to_end(options: BenchOptions) -> int:
    """Run it and print the result: of the first round, with the median speed of all rounds."""
    console = Console(stderr=True)
    peer = None if options.peer is None else Peer(options.peer, POSTGRES)
    if peer is not None:
        peer.parts()  # a missing one is told before anything is measured
    ours, theirs = [], []
    for number in range(options.rounds):
        # Each round begins with nothing, as the peer's does, and neither runs beside the other.
        async with _world(options, console) as world:
            ours.append(await _measure(world, options, console, with_webhooks=number == 0))
        if peer is not None:
            console.print("the peer's backfill")
            theirs.append(await peer.backfill(backfill_load(items=options.items, transactions=options.transactions)))
    speeds = [measured["transactions_per_s"] for measured in ours]
    result = {**ours[0], "transactions_per_s": round(median(speeds)), "rounds": speeds}
    if peer is not None:
        console.print("the peer's webhooks")
        trickle = await peer.trickle(rate=options.rate, seconds=options.seconds, changes=TRICKLE_CHANGES)
        result |= compared([Round(*each) for each in zip(speeds, theirs, strict=True)], trickle)
    if options.as_json:
        print(json.dumps(result))
    else:
        console.print_json(json.dumps(result))
    return 0


async def backfill(options: BenchOptions, console: Console) -> dict[str, Any]:
    """One backfill, in a world of its own that begins with nothing."""
    async with _world(options, console) as world:
        return await _measure(world, options, console, with_webhooks=False)


def _world(options: BenchOptions, console: Console) -> Stack:
    return Stack(
        StackOptions(
            projectors=options.projectors,
            simulator=(*SIMULATOR, "--latency-s", str(options.latency_s)),
            cluster=ClusterOptions(kafka=KAFKA, postgres=POSTGRES),
        ),
        progress=lambda what: console.print(f"starting {what}"),
    )


async def _measure(world: Stack, options: BenchOptions, console: Console, *, with_webhooks: bool) -> dict[str, Any]:
    settings = world.settings()
    async with contextlib.AsyncExitStack() as stack:
        observer = await stack.enter_async_context(observing(settings))
        bank = await stack.enter_async_context(Bank(world.simulator_url))
        application = await stack.enter_async_context(Application(world.gateway_url, world.secrets.api_key))
        console.print(f"the bank makes {options.transactions:,} transactions in {options.items} Items")
        items = await bank.make_items("bench", count=options.items, transactions=options.transactions // options.items)
        await observer.pool.execute("CHECKPOINT")
        console.print("backfill")
        filled = await _backfill(world, observer, bank, application, items)
        if not with_webhooks:
            return filled
        console.print(f"{options.rate:g} webhooks a second for {options.seconds:g} s")
        users = [item["user"] for item in items][:WATCHED_USERS_MAX]
        async with Watch(application, world.gateway_url, users) as watch:
            trickle = await _trickle(world, observer, bank, watch, items, options)
        return {**filled, **trickle, "rss_mib": _rss(world), "options": _shown(options), "cores": os.cpu_count()}


def _shown(options: BenchOptions) -> dict[str, Any]:
    return asdict(options) | {"peer": options.peer is not None}


async def _backfill(
    world: Stack, observer: Observer, bank: Bank, application: Application, items: list[dict[str, Any]]
) -> dict[str, Any]:
    cpu = _cpu(world)
    started = time.time()
    await asyncio.gather(*(application.link(item["user"], item["public_token"]) for item in items))
    await observer.until_quiet(bank, timeout_s=BACKFILL_S_MAX)
    spent = {name: seconds - cpu.get(name, 0.0) for name, seconds in _cpu(world).items()}
    ended = await _last_commit(observer.pool)
    counts = await observer.counts()
    rows = counts["transactions"]
    return {
        "transactions": rows,
        "transactions_per_s": round(rows / (ended - started)),
        "seconds": round(ended - started, 2),
        "events_published": counts["events"],
        "cpu_us_per_transaction": {name: round(seconds * 1e6 / rows, 1) for name, seconds in spent.items()},
    }


async def _trickle(
    world: Stack, observer: Observer, bank: Bank, watch: Watch, items: list[dict[str, Any]], options: BenchOptions
) -> dict[str, Any]:
    cpu = _cpu(world)
    started = time.time()
    steps = int(options.rate * options.seconds)
    tasks = []
    async with asyncio.TaskGroup() as group:
        for number in range(steps):
            await asyncio.sleep(max(0.0, started + number / options.rate - time.time()))
            item = items[number % len(items)]
            tasks.append(group.create_task(bank.step(item["item_id"], changes=TRICKLE_CHANGES)))
    took = time.time() - started
    await observer.until_quiet(bank, timeout_s=BACKFILL_S_MAX)
    deliveries = await bank.deliveries()
    since = started + took * WARM_UP_SHARE
    spent = {name: seconds - cpu.get(name, 0.0) for name, seconds in _cpu(world).items()}
    return {
        "webhooks": steps,
        "webhooks_per_s": round(steps / took, 1),
        "webhook_to_row_ms": (await observer.webhook_to_row(deliveries, since=since)).shown(),
        "webhook_to_push_ms": (await observer.webhook_to_push(deliveries, watch.arrived, since=since)).shown(),
        "cpu_ms_per_webhook": {name: round(seconds * 1e3 / steps, 2) for name, seconds in spent.items()},
    }


async def _last_commit(pool: asyncpg.Pool) -> float:
    """When the last changeset's rows were committed, by Postgres' own note."""
    moment = await pool.fetchval(
        f"SELECT max(extract(epoch FROM pg_xact_commit_timestamp(xmin)))::float8 FROM {SCHEMA}.changesets"
    )
    return float(moment)


def _processes(world: Stack) -> dict[str, list[psutil.Process]]:
    """Each part's processes; Postgres' workers and all projectors count as one."""
    found: dict[str, list[psutil.Process]] = {}
    pids = [(PROJECTIONS if name.startswith(PROJECTIONS) else name, stage.pid) for name, stage in world.stages.items()]
    cluster = world.cluster
    pids += [
        (name, server.pid) for name, server in (("kafka", cluster.kafka), ("postgres", cluster.postgres)) if server
    ]
    for name, pid in pids:
        head = psutil.Process(pid)
        found.setdefault(name, []).extend([head, *head.children(recursive=True)])
    return found


def _cpu(world: Stack) -> dict[str, float]:
    """CPU seconds used so far, by part. A worker of Postgres that has ended is counted with its parent."""
    used: dict[str, float] = {}
    for name, processes in _processes(world).items():
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                used[name] = used.get(name, 0.0) + times.user + times.system
        used[name] += sum(process.cpu_times().children_user for process in processes[:1])
    return used


def _rss(world: Stack) -> dict[str, int]:
    """Resident memory now, in MiB; pages that Postgres' workers share are counted once (PSS)."""
    return {
        name: sum(process.memory_full_info().pss for process in processes) // 2**20
        for name, processes in _processes(world).items()
    }
