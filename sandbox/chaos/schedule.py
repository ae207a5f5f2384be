"""What happens in which run of `tartan chaos`: chosen by the seed alone. Pure."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from runtime.crash_points import CrashPoint

KILLS_A_RUN = 8
"""Fewer, and most of the time goes into waiting for quiet; more, and a failure has too many possible causes."""
DISTURBANCES_A_RUN = 4
CHAINS_A_RUN = 3
"""Processes that die in one run, each two or three times: three that start at once keep two cores busy."""
TIMES_MAX = 3
"""A process dies at its first to third pass of a point."""
STOPS_SHARE = 0.4
"""Of chains that end with a zombie: each takes as long as a lease."""
SPAN_S = 8.0
"""Within which a run's faults begin; what they cause takes longer."""

INGEST, GATEWAY = "ingest", "gateway"
STREAMS, PROJECTIONS = ("streams", "streams-2"), ("projections", "projections-2")
SLOTS = ("streams", "projections", "streams-2", "ingest", "streams", "projections-2", "streams-2")
"""Who dies how often: the stage streams has most of the points."""
NEIGHBOURS = ("kafka", "postgres", "plaid", "webhooks")

T = TypeVar("T")


class Kind(StrEnum):
    """A fault that needs no chain of kills."""

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
"""Each of them is a SIGKILL too."""
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
    """Dies the `times`-th time it comes by `point`; or stops there, until its leases are over and it is woken up."""

    point: CrashPoint
    times: int
    stops: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A process that is killed at a moment, then, each time it is back, at a point; at `stop` it ends as a zombie."""

    slot: str
    at_s: float
    deaths: tuple[Death, ...] = ()
    stop: Death | None = None

    @property
    def kills(self) -> int:
        """How often the process dies."""
        return 1 + len(self.deaths)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault, when it begins, and what it is done to."""

    kind: Kind
    target: str
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run. `small_records`: those started in it cut what does not fit 8 KiB into parts."""

    number: int
    seed: int
    small_records: bool
    chains: tuple[Chain, ...] = field(default=())
    faults: tuple[Fault, ...] = field(default=())

    @property
    def kills(self) -> int:
        """SIGKILLs of this run."""
        return sum(chain.kills for chain in self.chains) + sum(fault.kind in SERVER_KILLS for fault in self.faults)


def schedule(*, seed: int, kills: int) -> list[Run]:
    """The runs that make so many kills; the same seed and number give the same runs."""
    rng = random.Random(seed)
    points = {stage: _dealt(rng, _points(stage)) for stage in (INGEST, "streams", "projections")}
    stops = {stage: _dealt(rng, _points(stage)) for stage in points}
    slots = _dealt(rng, SLOTS)
    servers = _dealt(rng, SERVER_KILLS)
    disturbances = _dealt(rng, DISTURBANCES)
    count = max(1, -(-kills // KILLS_A_RUN))
    runs = []
    for number in range(1, count + 1):
        budget = kills // count + (number <= kills % count)
        faults = [_fault(rng, next(servers), "")] if budget > 1 else []
        faults += [_fault(rng, *next(disturbances)) for _ in range(DISTURBANCES_A_RUN)]
        chosen = _distinct(slots, min(CHAINS_A_RUN, budget - 1) if budget > 1 else 1)
        lengths = _lengths(budget - sum(fault.kind in SERVER_KILLS for fault in faults), len(chosen))
        chains = tuple(
            _chain(rng, slot, kills=length, points=points[stage], stops=stops[stage])
            for slot, stage, length in zip(chosen, map(_stage, chosen), lengths, strict=True)
        )
        runs.append(
            Run(
                number=number,
                seed=rng.getrandbits(32),
                small_records=number % 2 == 1,
                chains=chains,
                faults=tuple(faults),
            )
        )
    return runs


def _points(stage: str) -> list[CrashPoint]:
    """The named points that a process of this stage comes by."""
    prefixes = {
        INGEST: ("ingest",),
        "streams": ("mark_due", "fetch_deltas", "follow_heads"),
        "projections": ("project", "publish"),
    }[stage]
    return [point for point in CrashPoint if point.partition(".")[0] in prefixes]


def _stage(slot: str) -> str:
    return slot.partition("-")[0]


def _chain(
    rng: random.Random, slot: str, *, kills: int, points: Iterator[CrashPoint], stops: Iterator[CrashPoint]
) -> Chain:
    at_s = round(rng.uniform(0, SPAN_S / 2), 2)
    deaths = tuple(Death(point=next(points), times=rng.randint(1, TIMES_MAX)) for _ in range(kills - 1))
    stop = Death(point=next(stops), times=1, stops=True) if rng.random() < STOPS_SHARE else None
    return Chain(slot=slot, at_s=at_s, deaths=deaths, stop=stop)


def _fault(rng: random.Random, kind: Kind, target: str) -> Fault:
    # A trap waits for its victim, and finds none while the others are dead: it is set first.
    span_s = 1.0 if kind is Kind.UNANSWERED else SPAN_S
    return Fault(kind=kind, target=target, at_s=round(rng.uniform(0, span_s), 2))


def _dealt(rng: random.Random, cards: Sequence[T]) -> Iterator[T]:
    """Deal shuffled cards for ever: each comes once before any comes again."""
    while True:
        yield from rng.sample(cards, len(cards))


def _distinct(cards: Iterator[str], count: int) -> list[str]:
    """The next so many cards that differ."""
    chosen: list[str] = []
    while len(chosen) < count:
        card = next(cards)
        if card not in chosen:
            chosen.append(card)
    return chosen


def _lengths(kills: int, chains: int) -> list[int]:
    """Kills shared out over chains, evenly."""
    return [kills // chains + (number < kills % chains) for number in range(chains)]
