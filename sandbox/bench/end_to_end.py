"""`tartan bench end-to-end`: throughput and latency of the whole installation, and the CPU time of each part."""

import asyncio
import contextlib
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from rich.console import Console

from projections.store.tables import SCHEMA
from sandbox.bench.peer import Peer, Round, backfill_load, comparison
from sandbox.bench.result import print_result
from sandbox.infra.cluster import ClusterOptions
from sandbox.infra.kafka import KafkaOptions
from sandbox.infra.postgres import PostgresOptions
from sandbox.infra.stack import PROJECTIONS, Stack, StackOptions
from sandbox.observe.browsers import Browsers
from sandbox.observe.observer import Session, open_session

BACKFILL_S_MAX = 300.0
WEBHOOK_CHANGES = 5
WARM_UP_SHARE = 0.1
"""The first tenth of the webhooks warms the processes up, as in the peer's benchmark."""
BROWSERS_MAX = 200

# A Postgres that flushes, as in production. The JVM starts cold and lives a minute: C1 alone costs it least, and an
# optimising one would spend more on compiling than it saves.
KAFKA = KafkaOptions()
POSTGRES = PostgresOptions()
SIMULATOR = ("--ready", "--no-validate-requests", "--rate-limits", "off")

Items = list[dict[str, Any]]


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
        peer.parts()  # raises for a missing part before anything is measured
    ours, theirs = [], []
    for number in range(options.rounds):
        # Each round starts empty, as the peer's does, and neither runs beside the other.
        ours.append(await measure(options, console, with_webhooks=number == 0))
        if peer is not None:
            console.print("the peer's backfill")
            theirs.append(await peer.backfill(backfill_load(items=options.items, transactions=options.transactions)))
    speeds = [measured["transactions_per_s"] for measured in ours]
    result = {**ours[0], "transactions_per_s": round(median(speeds)), "rounds": speeds}
    if peer is not None:
        console.print("the peer's webhooks")
        webhooks = await peer.webhooks(rate=options.rate, seconds=options.seconds, changes=WEBHOOK_CHANGES)
        result |= comparison([Round(*pair) for pair in zip(speeds, theirs, strict=True)], webhooks)
    print_result(result, console, as_json=options.as_json)
    return 0


async def measure(options: BenchOptions, console: Console, *, with_webhooks: bool) -> dict[str, Any]:
    """Measure one backfill on a new stack, and webhooks after it where `with_webhooks`."""
    stack_options = StackOptions(
        projectors=options.projectors,
        simulator=(*SIMULATOR, "--latency-s", str(options.latency_s)),
        cluster=ClusterOptions(kafka=KAFKA, postgres=POSTGRES),
    )
    async with (
        Stack(stack_options, progress=lambda step: console.print(f"starting {step}")) as stack,
        open_session(stack) as session,
    ):
        console.print(f"the bank makes {options.transactions:,} transactions in {options.items} Items")
        items = await session.bank.make_items(
            "bench", count=options.items, transactions=options.transactions // options.items
        )
        await session.observer.pool.execute("CHECKPOINT")
        console.print("backfill")
        backfill = await _backfill(stack, session, items)
        if not with_webhooks:
            return backfill
        console.print(f"{options.rate:g} webhooks a second for {options.seconds:g} s")
        users = [item["user"] for item in items][:BROWSERS_MAX]
        async with Browsers(session.application, stack.gateway_url, users) as browsers:
            webhooks = await _webhooks(stack, session, browsers, items, options)
        shown_options = asdict(options) | {"peer": options.peer is not None}
        return {**backfill, **webhooks, "rss_mib": _rss(stack), "options": shown_options, "cores": os.cpu_count()}


async def _backfill(stack: Stack, session: Session, items: Items) -> dict[str, Any]:
    observer = session.observer
    cpu_before, started = _cpu_s(stack), time.time()
    await asyncio.gather(*(session.application.link(item["user"], item["public_token"]) for item in items))
    await observer.until_quiet(session.bank, timeout_s=BACKFILL_S_MAX)
    cpu_s = _cpu_s(stack, since=cpu_before)
    seconds = float(await observer.pool.fetchval(_LAST_COMMIT)) - started
    counts = await observer.counts()
    rows = counts["transactions"]
    return {
        "transactions": rows,
        "transactions_per_s": round(rows / seconds),
        "seconds": round(seconds, 2),
        "events_published": counts["events"],
        "cpu_us_per_transaction": {name: round(used * 1e6 / rows, 1) for name, used in cpu_s.items()},
    }


async def _webhooks(
    stack: Stack, session: Session, browsers: Browsers, items: Items, options: BenchOptions
) -> dict[str, Any]:
    observer, bank = session.observer, session.bank
    cpu_before, started = _cpu_s(stack), time.time()
    steps = int(options.rate * options.seconds)
    async with asyncio.TaskGroup() as group:
        for number in range(steps):
            await asyncio.sleep(max(0.0, started + number / options.rate - time.time()))
            group.create_task(bank.step(items[number % len(items)]["item_id"], changes=WEBHOOK_CHANGES))
    duration_s = time.time() - started
    await observer.until_quiet(bank, timeout_s=BACKFILL_S_MAX)
    deliveries = await bank.deliveries()
    since = started + duration_s * WARM_UP_SHARE
    cpu_s = _cpu_s(stack, since=cpu_before)
    return {
        "webhooks": steps,
        "webhooks_per_s": round(steps / duration_s, 1),
        "webhook_to_row_ms": asdict(await observer.webhook_to_row(deliveries, since=since)),
        "webhook_to_push_ms": asdict(await observer.webhook_to_push(deliveries, browsers.arrived_at, since=since)),
        "cpu_ms_per_webhook": {name: round(used * 1e3 / steps, 2) for name, used in cpu_s.items()},
    }


def _processes(stack: Stack) -> dict[str, list[psutil.Process]]:
    """Return the processes of each part; Postgres' workers and all projectors count as one part."""
    pids = [(PROJECTIONS if name.startswith(PROJECTIONS) else name, stage.pid) for name, stage in stack.stages.items()]
    pids += [(name, server.pid) for name, server in stack.cluster.servers.items()]
    processes: dict[str, list[psutil.Process]] = {}
    for name, pid in pids:
        head = psutil.Process(pid)
        processes.setdefault(name, []).extend([head, *head.children(recursive=True)])
    return processes


def _cpu_s(stack: Stack, *, since: dict[str, float] | None = None) -> dict[str, float]:
    """Return the CPU seconds of each part since an earlier reading; an ended worker is counted with its parent."""
    used: dict[str, float] = {}
    for name, processes in _processes(stack).items():
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                used[name] = used.get(name, 0.0) + times.user + times.system
        used[name] += processes[0].cpu_times().children_user
    return {name: seconds - (since or {}).get(name, 0.0) for name, seconds in used.items()}


def _rss(stack: Stack) -> dict[str, int]:
    """Return the resident memory in MiB; pages that Postgres' workers share are counted once (PSS)."""
    return {
        name: sum(process.memory_full_info().pss for process in processes) // 2**20
        for name, processes in _processes(stack).items()
    }


# Commit timestamps are Postgres' own, so that polling does not add to the time.
_LAST_COMMIT = f"SELECT max(extract(epoch FROM pg_xact_commit_timestamp(xmin)))::float8 FROM {SCHEMA}.changesets"
