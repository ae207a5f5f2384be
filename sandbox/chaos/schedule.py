"""Plan the faults of each run of `tartan chaos` from the seed alone. Pure."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from runtime.crash_points import CrashPoint

KILLS_A_RUN = 8
"""With fewer, most of the time is spent on waiting for quiet; with more, a failure has too many possible causes."""
DISTURBANCES_A_RUN = 4
CHAINS_A_RUN = 3
"""Processes that die in one run, each two or three times: three concurrent starts keep two cores busy."""
TIMES_MAX = 3
"""A process dies at its first to third pass of a point."""
STOPS_SHARE = 0.4
"""Share of chains that end with a zombie: each takes as long as a lease."""
SPAN_S = 8.0
"""A run's faults begin within this time; their effects take longer."""

INGEST, GATEWAY = "ingest", "gateway"
STREAMS, PROJECTIONS = ("streams", "streams-2"), ("projections", "projections-2")
SLOTS = ("streams", "projections", "streams-2", "ingest", "streams", "projections-2", "streams-2")
"""Frequency of deaths by process: the stage streams has most of the crash points."""
NEIGHBOURS = ("kafka", "postgres", "plaid", "webhooks")

T = TypeVar("T")


class Kind(StrEnum):
    """Kinds of faults besides chains of deaths."""

    KILL_GATEWAY = "kill.gateway"
    KILL_KAFKA = "kafka.killed"
    KAFKA_AWAY = "kafka.away"
    KILL_POSTGRES = "postgres.killed"
    RESTART_POSTGRES = "postgres.restarted"
    ZOMBIE = "zombie"
    UNANSWERED = "unanswered"
    CUT = "cut"
    STALL = "stalled"
    BLACK_HOLE = "black_hole"
    STORM = "rebalance.storm"


SERVER_KILLS = (Kind.KILL_POSTGRES, Kind.KILL_GATEWAY, Kind.KILL_KAFKA, Kind.KAFKA_AWAY)
"""Faults that are a SIGKILL too."""
DISTURBANCES = (
    *((Kind.UNANSWERED, neighbour) for neighbour in NEIGHBOURS),
    *((Kind.UNANSWERED, neighbour) for neighbour in ("kafka", "postgres")),
    *((Kind.CUT, neighbour) for neighbour in NEIGHBOURS),
    *((Kind.STALL, neighbour) for neighbour in ("kafka", "plaid")),
    *((Kind.BLACK_HOLE, neighbour) for neighbour in ("kafka", "postgres")),
    *((Kind.ZOMBIE, name) for name in (*STREAMS, *PROJECTIONS, INGEST, GATEWAY)),
    (Kind.ZOMBIE, "streams"),
    (Kind.RESTART_POSTGRES, ""),
    (Kind.STORM, "streams"),
    (Kind.STORM, "projections"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """Planned death at the `times`-th pass of `point`; with `stops` a stop there until its leases are over."""

    point: CrashPoint
    times: int
    stops: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Process that is killed at a moment, then dies at a point after each restart; at `stop` it becomes a zombie."""

    slot: str
    at_s: float
    deaths: tuple[Death, ...] = ()
    stop: Death | None = None

    @property
    def kills(self) -> int:
        """Number of deaths of the process."""
        return 1 + len(self.deaths)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Fault with its target and the time of its begin."""

    kind: Kind
    target: str
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Faults of one run; with `small_records` processes started in it cut records of more than 8 KiB in chunks."""

    number: int
    seed: int
    small_records: bool
    chains: tuple[Chain, ...] = field(default=())
    faults: tuple[Fault, ...] = field(default=())

    @property
    def kills(self) -> int:
        """Number of SIGKILLs of this run."""
        return sum(chain.kills for chain in self.chains) + sum(fault.kind in SERVER_KILLS for fault in self.faults)


def schedule(*, seed: int, kills: int) -> list[Run]:
    """Return runs with so many kills in all; the same seed and number give the same runs."""
    rng = random.Random(seed)
    points = {stage: _shuffled(rng, _points(stage)) for stage in (INGEST, "streams", "projections")}
    stops = {stage: _shuffled(rng, _points(stage)) for stage in points}
    slots = _shuffled(rng, SLOTS)
    servers = _shuffled(rng, SERVER_KILLS)
    disturbances = _shuffled(rng, DISTURBANCES)
    count = max(1, -(-kills // KILLS_A_RUN))
    runs = []
    for number in range(1, count + 1):
        budget = kills // count + (number <= kills % count)
        faults = [_fault(rng, next(servers), "")] if budget > 1 else []
        faults += [_fault(rng, *next(disturbances)) for _ in range(DISTURBANCES_A_RUN)]
        chosen: list[str] = []
        while len(chosen) < (min(CHAINS_A_RUN, budget - 1) if budget > 1 else 1):
            slot = next(slots)
            if slot not in chosen:
                chosen.append(slot)
        kills_left = budget - sum(fault.kind in SERVER_KILLS for fault in faults)
        chains = []
        for index, slot in enumerate(chosen):
            chain_kills = kills_left // len(chosen) + (index < kills_left % len(chosen))
            stage = slot.partition("-")[0]
            chains.append(_chain(rng, slot, kills=chain_kills, points=points[stage], stops=stops[stage]))
        runs.append(
            Run(
                number=number,
                seed=rng.getrandbits(32),
                small_records=number % 2 == 1,
                chains=tuple(chains),
                faults=tuple(faults),
            )
        )
    return runs


def _points(stage: str) -> list[CrashPoint]:
    """Return the crash points of a stage."""
    prefixes = {
        INGEST: ("ingest",),
        "streams": ("mark_due", "fetch_deltas", "follow_heads"),
        "projections": ("project", "publish"),
    }[stage]
    return [point for point in CrashPoint if point.partition(".")[0] in prefixes]


def _chain(
    rng: random.Random, slot: str, *, kills: int, points: Iterator[CrashPoint], stops: Iterator[CrashPoint]
) -> Chain:
    at_s = round(rng.uniform(0, SPAN_S / 2), 2)
    deaths = tuple(Death(point=next(points), times=rng.randint(1, TIMES_MAX)) for _ in range(kills - 1))
    stop = Death(point=next(stops), times=1, stops=True) if rng.random() < STOPS_SHARE else None
    return Chain(slot=slot, at_s=at_s, deaths=deaths, stop=stop)


def _fault(rng: random.Random, kind: Kind, target: str) -> Fault:
    # A trap waits for a request, and gets none while the processes are dead: it is set first.
    span_s = 1.0 if kind is Kind.UNANSWERED else SPAN_S
    return Fault(kind=kind, target=target, at_s=round(rng.uniform(0, span_s), 2))


def _shuffled(rng: random.Random, items: Sequence[T]) -> Iterator[T]:
    """Yield items in random order without end, each once before any comes again."""
    while True:
        yield from rng.sample(items, len(items))
