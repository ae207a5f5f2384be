"""Whose turn it is: start-time fair queueing over lanes, and within each lane over tenants. Core.

A flow (a lane, or a tenant in a lane) of weight w moves on by 1 / w turns with each Item that is claimed of it. The
present moves on with whoever is served; a flow that was idle begins at the present, so it neither waits for the
others' backlogs nor catches up on what it did not ask for.
Source: Goyal, Vin, Cheng, Start-time Fair Queuing (SIGCOMM 1996), section 2.
"""

from collections.abc import Hashable, Iterable, Mapping
from typing import Generic, TypeVar

from runtime.scheduler.types import Claimed, FairQueueState, Lane

LANE_WEIGHTS: Mapping[Lane, float] = {Lane.WEBHOOK: 8.0, Lane.MANUAL: 4.0, Lane.SCHEDULE: 2.0, Lane.BACKFILL: 1.0}
"""Shares of lanes that have waited long enough to take turns: a flood of webhooks leaves 7 of 15 to the others, and
one of 15 to backfills alone."""

Flow = TypeVar("Flow", bound=Hashable)


class FairQueue:
    """How far each lane and tenant was served, as one worker knows it.

    Workers do not share it: each serves the tenants fairly, so all of them together do.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._lanes: _Flows[Lane] = _Flows()
        self._tenants: dict[Lane, _Flows[str]] = {lane: _Flows() for lane in Lane}

    def standing(self) -> FairQueueState:
        """What the next claim has to know."""
        rows = [
            (tenant, int(lane), turns)
            for lane, flows in self._tenants.items()
            for tenant, turns in flows.ahead().items()
        ]
        lanes = self._lanes.ahead()
        return FairQueueState(
            tenants=[tenant for tenant, _, _ in rows],
            lanes=[lane for _, lane, _ in rows],
            ahead=[turns for _, _, turns in rows],
            weighted=list(self._weights),
            weights=list(self._weights.values()),
            lanes_ahead=[lanes.get(lane, 0.0) for lane in Lane],
            lane_weights=[LANE_WEIGHTS[lane] for lane in Lane],
        )

    def served(self, claims: Iterable[Claimed]) -> None:
        """Move on those whose Items were claimed, in the order of the claims."""
        for claimed in claims:
            lane = Lane(claimed.lane)
            self._lanes.served(lane, LANE_WEIGHTS[lane])
            self._tenants[lane].served(claimed.tenant, self._weights.get(claimed.tenant, 1.0))


class _Flows(Generic[Flow]):
    """Virtual times of flows that share one server. Nothing is kept of a flow that is not ahead of the present."""

    def __init__(self) -> None:
        self._now = 0.0
        self._ends: dict[Flow, float] = {}

    def ahead(self) -> dict[Flow, float]:
        """How far each flow is ahead of the present."""
        self._ends = {flow: end for flow, end in self._ends.items() if end > self._now}
        return {flow: end - self._now for flow, end in self._ends.items()}

    def served(self, flow: Flow, weight: float) -> None:
        """Move a flow on by one turn, and the present to its start."""
        start = max(self._now, self._ends.get(flow, 0.0))
        self._now = start
        self._ends[flow] = start + 1.0 / weight
