"""Benchmark of the usual design (a queue on Redis, workers, Postgres) on the same machine.

It is a folder of its own, installed with its own tools: `peer.js`, which prints one JSON line a run.
"""

import json
import math
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

from sandbox.infra.machine import LOOPBACK, free_port
from sandbox.infra.postgres import Postgres, PostgresOptions
from sandbox.infra.processes import Command, run, start
from schemas.errors import Halt

REDIS_PORTS, FAKE_PORTS, INGRESS_PORTS = range(10_000, 10_600), range(10_600, 11_200), range(11_200, 11_800)
"""Below the ephemeral ports, apart from those of Kafka, Postgres and our stages, and one range a role."""
REDIS_START_S_MAX = 15.0
REDIS_STOP_S_MAX = 10.0
RUN_S_MAX = 240.0
"""The peer takes up to 150 s for the rows, and some for its processes."""
PAGE_TRANSACTIONS_MAX = 500

# Its best form (README of the peer): two workers, rows and ledger entries of a page in one statement over unnest.
PROFILE = "tuned"
BEST = {"LEDGER": "1", "INSERT": "unnest", "WORKERS": "2", "RUNS": "1"}

_REDIS_READY = b"Ready to accept connections"


class Load(NamedTuple):
    """Load of the peer: `items` webhooks, each with `pages` of `per_page` transactions."""

    items: int
    pages: int
    per_page: int

    @property
    def transactions(self) -> int:
        """Rows that the peer must have stored at the end."""
        return self.items * self.pages * self.per_page


class PeerRun(NamedTuple):
    """Result of one run of the peer."""

    rows: int
    transactions_per_s: int
    webhook_to_row_p50_ms: float
    webhook_to_row_p99_ms: float


def backfill_load(*, items: int, transactions: int) -> Load:
    """Return a load of as many Items and transactions as ours, in pages of the same size as far as they divide."""
    each = max(1, transactions // items)
    pages = math.ceil(each / PAGE_TRANSACTIONS_MAX)
    return Load(items, pages, each // pages)


def parse(output: str, load: Load) -> PeerRun:
    """Read the result in the output of a run.

    Raises: Halt, where there is none, or the peer did not store all its transactions.
    """
    for line in output.splitlines():
        if not line.startswith("{"):
            continue
        try:
            row = json.loads(line)
            measured = PeerRun(int(row["rows"]), int(row["txPerS"]), float(row["p50"]), float(row["p99"]))
        except (ValueError, KeyError, TypeError) as error:
            raise Halt(f"the peer's result cannot be read: {line[:500]}") from error
        if measured.rows != load.transactions:
            raise Halt(f"the peer stored {measured.rows} of {load.transactions} transactions in its time")
        return measured
    raise Halt("the peer printed no result")


class Round(NamedTuple):
    """One backfill of ours and one of the peer's, right after each other."""

    ours: int
    theirs: PeerRun

    @property
    def ratio(self) -> float:
        """Our speed divided by the peer's."""
        return self.ours / self.theirs.transactions_per_s


def comparison(rounds: Sequence[Round], webhooks: PeerRun) -> dict[str, Any]:
    """Return the figures of the peer: medians, since a busy machine slows single rounds."""
    return {
        "peer": {
            "transactions_per_s": round(median(each.theirs.transactions_per_s for each in rounds)),
            "webhook_to_row_ms": {"p50": webhooks.webhook_to_row_p50_ms, "p99": webhooks.webhook_to_row_p99_ms},
        },
        "ratio_to_peer": round(median(each.ratio for each in rounds), 2),
        "ratios": [round(each.ratio, 2) for each in rounds],
    }


@dataclass(frozen=True, slots=True)
class Peer:
    """Peer in `folder`, on a Postgres with these options; each run has a Postgres and a Redis of its own."""

    folder: Path
    postgres: PostgresOptions

    async def backfill(self, load: Load) -> PeerRun:
        """Run all webhooks at once, each with a history."""
        return await self._run("backfill", load, {})

    async def webhooks(self, *, rate: float, seconds: float, changes: int) -> PeerRun:
        """Run webhooks at a steady rate, each with `changes` transactions."""
        load = Load(max(1, int(rate * seconds)), 1, changes)
        return await self._run("trickle", load, {"RATE": f"{rate:g}"})

    def parts(self) -> tuple[Path, str, str]:
        """Return the paths of its program, Node and Redis.

        Raises: Halt, naming what is missing.
        """
        program, node, redis = self.folder / "peer.js", shutil.which("node"), shutil.which("redis-server")
        if not program.is_file():
            raise Halt(f"no peer.js in {self.folder}: --peer takes the folder of the peer's benchmark")
        if not (self.folder / "node_modules").is_dir():
            raise Halt(f"the peer is not installed: run `npm install` in {self.folder}")
        if node is None or redis is None:
            raise Halt("the peer needs Node and redis-server on the PATH")
        return program.absolute(), node, redis

    async def _run(self, scenario: Literal["backfill", "trickle"], load: Load, settings: Mapping[str, str]) -> PeerRun:
        program, node, redis = self.parts()
        with tempfile.TemporaryDirectory(prefix="tartan-peer-") as name:
            scratch = Path(name)
            log = scratch / "log"
            async with (
                Postgres(scratch / "postgres", options=self.postgres) as postgres,
                _redis(redis, scratch) as port,
            ):
                environment = {
                    "PATH": os.environ.get("PATH", os.defpath),
                    "PG_URL": await postgres.create_database("peer"),
                    "REDIS_PORT": str(port),
                    "FAKE_PORT": str(free_port(FAKE_PORTS)),
                    "INGRESS_PORT": str(free_port(INGRESS_PORTS)),
                    "ITEMS": str(load.items),
                    "PAGES": str(load.pages),
                    "PER_PAGE": str(load.per_page),
                    **BEST,
                    **settings,
                }
                arguments = [node, str(program), "bench", PROFILE, scenario]
                command = Command(name="the peer", arguments=arguments, log=log, environment=environment)
                await run(command, timeout_s=RUN_S_MAX)
            return parse(log.read_text("utf-8", errors="replace"), load)


@asynccontextmanager
async def _redis(program: str, scratch: Path) -> AsyncIterator[int]:
    """Run a Redis as the peer's README requires, with a log flushed every second and no snapshots; give its port."""
    port, log = free_port(REDIS_PORTS), scratch / "redis.log"
    options = ["--bind", LOOPBACK, "--port", str(port), "--dir", str(scratch), "--daemonize", "no", "--save", ""]
    options += ["--appendonly", "yes", "--appendfsync", "everysec"]
    child = start(Command(name="Redis", arguments=[program, *options], log=log))
    try:
        await child.ready(lambda: _REDIS_READY in log.read_bytes(), timeout_s=REDIS_START_S_MAX)
        yield port
    finally:
        await child.stop(timeout_s=REDIS_STOP_S_MAX)
