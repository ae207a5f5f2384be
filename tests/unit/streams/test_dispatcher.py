"""When the dispatcher looks for work, and whose turn it is."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.scheduler.types import Claimed, Claims, Lane
from schemas.errors import Retry
from schemas.log.records import Cause
from streams.dispatcher import TOKENS_WAIT_S_MAX, TOKENS_WAIT_S_MIN, Dispatcher
from streams.schedule.fair_queue import LANE_WEIGHTS, FairQueue

NEVER_S = 3600.0
"""A poll that no test waits for: what is claimed before was woken."""


def claimed(number: int, *, tenant: str = "t", lane: int = 0) -> Claimed:
    return Claimed(
        item_id=f"item-{number}",
        tenant=tenant,
        user=1,
        partition=0,
        institution_id=None,
        institution_name=None,
        sealed_token=None,
        lease=number.to_bytes(16, "big"),
        expired=False,
        generation=1,
        lane=lane,
        cause=Cause("webhook"),
        unlink_requested=False,
        accounts_wanted=False,
        accounts_at=None,
        attempts=0,
        not_ready=0,
        head=None,
        hints=(),
    )


class Queue:
    """Items that are ready, and how often it was asked for them."""

    def __init__(self, ready: int = 0) -> None:
        self.ready = [claimed(number) for number in range(ready)]
        self.asked: list[int] = []
        self.expired: list[Claimed] = []
        self.more_in_s: float | None = None
        self.fails = 0

    async def claim(self, slots: int) -> Claims:
        self.asked.append(slots)
        if self.fails:
            self.fails -= 1
            raise Retry("Postgres is away")
        given, self.ready = self.ready[:slots], self.ready[slots:]
        return Claims(given, more_in_s=self.more_in_s)

    async def expire(self, claimed: Claimed) -> None:
        self.expired.append(claimed)


class Desk:
    """A dispatcher at a queue."""

    def __init__(self, queue: Queue, *, slots: int = 4, poll_s: float = NEVER_S) -> None:
        self.queue = queue
        self.sent: list[Claimed] = []
        self.dispatcher = Dispatcher(queue, self._send, slots=slots, poll_s=poll_s)  # type: ignore[arg-type]
        self._task: asyncio.Task[None] | None = None

    async def _send(self, claimed: Claimed) -> None:
        self.sent.append(claimed)

    async def __aenter__(self) -> "Desk":
        self._task = asyncio.create_task(self.dispatcher.run())
        await self.settled()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.dispatcher.drain(timeout_s=0)
        assert self._task is not None
        await asyncio.wait_for(self._task, 5)

    async def settled(self) -> None:
        """Let everything that can go on go on."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def until_asked(self, times: int) -> None:
        async with asyncio.timeout(5):
            while len(self.queue.asked) < times:
                await asyncio.sleep(0.005)


async def test_it_claims_as_many_as_there_are_free_slots_and_no_more() -> None:
    async with Desk(Queue(ready=9)) as desk:
        first = len(desk.sent)
        desk.dispatcher.done(desk.sent[0])
        desk.dispatcher.done(desk.sent[1])
        await desk.settled()

    assert (first, len(desk.sent)) == (4, 6)
    assert desk.queue.asked == [4, 2]


async def test_a_webhook_costs_one_claim_and_its_end_none() -> None:
    async with Desk(Queue()) as desk:
        desk.queue.ready = [claimed(1)]
        desk.dispatcher.wake()  # mark_due has committed
        await desk.settled()
        desk.dispatcher.done(desk.sent[0])
        await desk.settled()
        desk.dispatcher.wake_for_new_heads()  # follow_heads has committed what the pass appended
        await desk.settled()

    assert desk.queue.asked == [4, 4]  # at the start, and for the webhook


async def test_a_mark_during_a_pass_is_looked_for_at_its_end_and_when_the_follower_goes_on() -> None:
    async with Desk(Queue(ready=1)) as desk:
        desk.dispatcher.wake()
        await desk.settled()
        before = len(desk.queue.asked)
        desk.dispatcher.done(desk.sent[0])
        await desk.settled()
        at_its_end = len(desk.queue.asked)
        desk.dispatcher.wake_for_new_heads()
        await desk.settled()
        followed = len(desk.queue.asked)

    assert (at_its_end - before, followed - at_its_end) == (1, 1)


async def test_what_others_made_due_is_found_by_the_poll() -> None:
    async with Desk(Queue(), poll_s=0.01) as desk:
        desk.queue.ready = [claimed(1)]
        await desk.until_asked(3)

    assert [each.item_id for each in desk.sent] == ["item-1"]


async def test_while_the_quota_is_used_up_no_wake_causes_a_claim() -> None:
    queue = Queue()
    queue.more_in_s = NEVER_S
    async with Desk(queue) as desk:
        for _ in range(20):
            desk.dispatcher.wake()
            await desk.settled()
        asked = len(queue.asked)

    assert asked == 1


async def test_the_next_token_is_waited_for_and_not_longer() -> None:
    queue = Queue()
    queue.more_in_s = 0.001
    async with Desk(queue) as desk:
        began = asyncio.get_running_loop().time()
        await desk.until_asked(3)
        took_s = asyncio.get_running_loop().time() - began

    assert took_s >= TOKENS_WAIT_S_MIN  # two waits, so neither was shorter than half of both
    assert TOKENS_WAIT_S_MAX < NEVER_S


async def test_a_claim_that_held_items_back_is_repeated_at_once() -> None:
    queue = Queue(ready=1)
    queue.more_in_s = 0.0
    desk = Desk(queue)

    async def claim_twice(slots: int) -> Claims:
        claims = await Queue.claim(queue, slots)
        queue.more_in_s = None
        return claims

    queue.claim = claim_twice  # type: ignore[method-assign]
    async with desk:
        await desk.settled()

    assert queue.asked == [4, 3]


async def test_postgres_being_away_is_said_and_outlasted() -> None:
    queue = Queue(ready=1)
    queue.fails = 1
    async with Desk(queue) as desk:
        away = desk.dispatcher.away
        await desk.until_asked(2)
        await desk.settled()

    assert away == "Postgres is away"
    assert desk.dispatcher.away is None
    assert len(desk.sent) == 1


async def test_a_lease_is_counted_from_before_its_claim_was_answered() -> None:
    queue = Queue(ready=1)
    answered = asyncio.Event()

    async def slow(slots: int) -> Claims:
        claims = await Queue.claim(queue, slots)
        await answered.wait()
        return claims

    queue.claim = slow  # type: ignore[method-assign]
    async with Desk(queue) as desk:
        before = asyncio.get_running_loop().time()
        answered.set()
        await desk.settled()

        assert desk.dispatcher.claimed_at(desk.sent[0]) <= before


async def test_a_stop_ends_the_leases_of_what_does_not_end_in_time() -> None:
    desk = Desk(Queue(ready=2))
    async with desk:
        desk.dispatcher.done(desk.sent[0])

    assert desk.queue.expired == [desk.sent[1]]


async def test_a_stop_waits_for_what_a_claim_on_its_way_has_leased(monkeypatch: pytest.MonkeyPatch) -> None:
    queue, answer = Queue(ready=1), asyncio.Event()
    claim = queue.claim

    async def slow(slots: int) -> Claims:
        claims = await claim(slots)
        await answer.wait()
        return claims

    monkeypatch.setattr(queue, "claim", slow)
    desk = Desk(queue)
    running = asyncio.create_task(desk.dispatcher.run())
    await desk.until_asked(1)
    stop = asyncio.create_task(desk.dispatcher.drain(timeout_s=30))
    await asyncio.sleep(0)
    answer.set()
    await desk.settled()

    assert not stop.done()
    [leased] = desk.sent
    desk.dispatcher.done(leased)
    await asyncio.wait_for(stop, 5)
    running.cancel()


def serve(turns: FairQueue, backlogs: dict[tuple[int, str], int], times: int) -> list[tuple[int, str]]:
    """Claim one Item after the other from queues by lane and tenant, as the statement does for lanes that waited."""
    served = []
    for number in range(times):
        standing = turns.state()
        ahead = {
            (lane, tenant): turn
            for tenant, lane, turn in zip(standing.tenants, standing.lanes, standing.ahead, strict=True)
        }
        waiting = [flow for flow, items in backlogs.items() if items]
        lane, tenant = min(waiting, key=lambda flow: (standing.lanes_ahead[flow[0]], flow[0], ahead.get(flow, 0.0)))
        backlogs[lane, tenant] -= 1
        turns.advance([claimed(number, tenant=tenant, lane=lane)])
        served.append((lane, tenant))
    return served


@given(st.dictionaries(st.sampled_from("abcdef"), st.floats(0.1, 10), min_size=2, max_size=6), st.integers(50, 300))
def test_over_any_stretch_tenants_get_their_weights_to_within_one_turn_each(
    weights: dict[str, float], times: int
) -> None:
    turns = FairQueue(weights)
    backlogs = {(int(Lane.SCHEDULE), tenant): 1_000 for tenant in weights}

    served = Counter(tenant for _, tenant in serve(turns, backlogs, times))

    # SFQ's bound: what two backlogged flows got, each by its weight, differs by at most one Item of each.
    for each in weights:
        for other in weights:
            apart = abs(served[each] / weights[each] - served[other] / weights[other])
            assert apart <= 1 / weights[each] + 1 / weights[other] + 1e-6


@given(st.integers(1, 400), st.integers(1, 50))
def test_who_was_idle_is_next_and_does_not_catch_up(busy: int, more: int) -> None:
    turns = FairQueue({})
    backlogs = {(2, "busy"): 1_000, (2, "idle"): 0}
    serve(turns, backlogs, busy)
    backlogs[2, "idle"] = 1_000

    served = [tenant for _, tenant in serve(turns, backlogs, more + 1)]

    assert "idle" in served[:2]
    assert abs(served.count("idle") - served.count("busy")) <= 1


def test_lanes_that_wait_get_their_shares_and_none_is_starved() -> None:
    turns = FairQueue({})
    rounds = 10
    backlogs = {(int(lane), "t"): 1_000 for lane in Lane}

    served = Counter(lane for lane, _ in serve(turns, backlogs, rounds * int(sum(LANE_WEIGHTS.values()))))

    for lane, weight in LANE_WEIGHTS.items():
        assert served[lane] == pytest.approx(rounds * weight, abs=1)


def test_nothing_is_kept_of_tenants_that_were_not_served_lately() -> None:
    turns = FairQueue({})
    for number in range(1_000):
        turns.advance([claimed(number, tenant=f"tenant-{number}")])
    for number in range(3):
        turns.advance([claimed(number, tenant="last")])

    assert turns.state().tenants == ["last"]
