"""What becomes of a simulated webhook: copies, retries, the end of patience; rate limits and seeded faults."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest

from sandbox.simulator.api.limits import TABLES, RateLimiter
from sandbox.simulator.api.plaid_errors import PlaidFailure
from sandbox.simulator.api.signing import Keyring
from sandbox.simulator.control.faults import Fault, Faults
from sandbox.simulator.options import FaultRates, WebhookRates
from sandbox.simulator.webhooks.delivery import DeliveryQueue, Webhook, copy_delays, retry_after_s

START = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)
URL = "http://tartan.example/webhooks"


def after(seconds: float) -> dt.datetime:
    return START + dt.timedelta(seconds=seconds)


def webhook(number: int = 1) -> Webhook:
    return Webhook(number, f"item-{number}", URL, "SYNC_UPDATES_AVAILABLE", b"{}", START)


def courier(rates: WebhookRates | None = None, **options: Any) -> DeliveryQueue:
    chosen: dict[str, Any] = {"seed": 1, "time_scale": 1.0, "in_flight_max": 100, **options}
    return DeliveryQueue(rates=rates or WebhookRates(), **chosen)


def attempts(sender: DeliveryQueue, answer: Callable[[int], int], *, until_s: float) -> list[float]:
    """Run a courier to its end in virtual time; give the seconds at which it tried."""
    tried = []
    while (due_at := sender.next_due_at()) is not None and due_at <= after(until_s):
        for delivery in sender.due(due_at):
            tried.append((due_at - START).total_seconds())
            sender.record_answer(delivery, status=answer(delivery.attempt), retry_after=None, now=due_at)
    return tried


def test_an_accepted_webhook_is_sent_once() -> None:
    sender = courier()
    sender.submit(webhook())

    assert attempts(sender, lambda _: 200, until_s=1e6) == [0]
    assert sender.quiet
    assert sender.counts["acked"] == 1


def test_a_refused_webhook_is_tried_for_a_day_each_wait_four_times_longer() -> None:
    sender = courier()
    sender.submit(webhook())

    tried = attempts(sender, lambda _: 500, until_s=1e6)

    assert tried == [0, 30, 150, 630, 2550, 10230, 40950]
    assert sender.counts["expired"] == 1
    assert sender.quiet


def test_no_answer_is_a_failure_like_any_other() -> None:
    sender = courier()
    sender.submit(webhook())

    assert attempts(sender, lambda attempt: 0 if attempt < 3 else 200, until_s=1e6) == [0, 30, 150]


@pytest.mark.parametrize("status", [201, 204, 302, 401])
def test_only_200_is_an_answer(status: int) -> None:
    sender = courier()
    sender.submit(webhook())

    assert attempts(sender, lambda _: status, until_s=100) == [0, 30]


@pytest.mark.parametrize(
    ("header", "wait_s"),
    [
        ("120", 120),
        ("Fri, 01 May 2026 12:05:00 GMT", 300),
        ("2026-05-01T12:10:00Z", 600),
        ("86400", 4 * 3600),
        ("soon", 30),
    ],
)
def test_retry_after_is_honoured_up_to_four_hours(header: str, wait_s: float) -> None:
    sender = courier()
    sender.submit(webhook())
    (delivery,) = sender.due(START)

    sender.record_answer(delivery, status=429, retry_after=header, now=START)

    assert sender.next_due_at() == after(wait_s)


def test_an_endpoint_that_refuses_nearly_everything_is_given_up() -> None:
    sender = courier()
    for number in range(1, 12):
        sender.submit(webhook(number))

    attempts(sender, lambda _: 500, until_s=1e6)

    assert sender.counts["abandoned"] > 0
    assert sender.quiet


def test_an_endpoint_that_accepts_every_fifth_keeps_its_retries() -> None:
    sender = courier()
    for number in range(1, 101):
        sender.submit(webhook(number))

    for delivery in sender.due(START):
        accepted = delivery.webhook.number % 5 == 0
        sender.record_answer(delivery, status=200 if accepted else 500, retry_after=None, now=START)

    assert sender.waiting == 80
    assert sender.counts["abandoned"] == 0


def test_at_most_so_many_are_on_their_way() -> None:
    sender = courier(in_flight_max=3)
    for number in range(1, 11):
        sender.submit(webhook(number))

    taken = sender.due(START)

    assert len(taken) == 3
    assert sender.due(START) == []
    assert sender.next_due_at() is None
    sender.record_answer(taken[0], status=200, retry_after=None, now=START)
    assert len(sender.due(START)) == 1


def test_the_seed_loses_repeats_and_delays() -> None:
    rates = WebhookRates(lost=0.2, repeated=0.3, delayed=0.3, delay_max_s=60)

    drawn = [copy_delays(1, number, rates) for number in range(2000)]

    assert drawn == [copy_delays(1, number, rates) for number in range(2000)]
    assert 300 < sum(not delays for delays in drawn) < 500
    assert 350 < sum(len(delays) == 2 for delays in drawn) < 600
    assert all(0 <= delay_s <= 120 for delays in drawn for delay_s in delays)
    assert copy_delays(1, 1, WebhookRates()) == (0.0,)


def test_a_time_scale_shrinks_a_day() -> None:
    sender = courier(time_scale=0.001)
    sender.submit(webhook())

    assert attempts(sender, lambda _: 500, until_s=1e6)[:3] == [0, 0.03, 0.15]


def test_nonsense_is_no_retry_after() -> None:
    assert retry_after_s("later", START) is None
    assert retry_after_s("2026-05-01T11:00:00", START) == 0


def test_keys_and_signatures_come_from_the_seed() -> None:
    one, other, foreign = Keyring(1, START), Keyring(1, START), Keyring(2, START)

    assert one.sign(b"body", START) == other.sign(b"body", START)
    assert one.sign(b"body", START) != foreign.sign(b"body", START)


def test_a_rotated_key_expires_or_overlaps() -> None:
    ring = Keyring(1, START)
    first = ring.current

    second = ring.rotate(after(10), expire_old=True)
    third = ring.rotate(after(20), expire_old=False)

    assert first.jwk()["expired_at"] == int(after(10).timestamp())
    assert second.jwk()["expired_at"] is None
    assert len({first.kid, second.kid, third.kid}) == 3
    assert ring.current is third


def test_a_limit_refuses_what_is_beyond_it_within_a_minute() -> None:
    buckets = RateLimiter(TABLES["production"])
    for _ in range(50):
        buckets.count("/transactions/sync", "one", START)

    with pytest.raises(PlaidFailure) as refusal:
        buckets.count("/transactions/sync", "one", after(59))

    assert (refusal.value.code, refusal.value.kind.status) == ("TRANSACTIONS_SYNC_LIMIT", 429)
    assert refusal.value.kind.type == "RATE_LIMIT_EXCEEDED"
    buckets.count("/transactions/sync", "other", after(59))
    buckets.count("/transactions/sync", "one", after(60))


def test_a_limit_of_the_client_counts_all_items() -> None:
    buckets = RateLimiter(TABLES["sandbox"])
    for number in range(100):
        buckets.count("/transactions/refresh", f"item-{number}", START)

    with pytest.raises(PlaidFailure, match="TRANSACTIONS_REFRESH_LIMIT"):
        buckets.count("/transactions/refresh", "another", START)


def test_limits_can_be_off() -> None:
    buckets = RateLimiter(TABLES["off"])

    for _ in range(10_000):
        buckets.count("/transactions/sync", "one", START)


def test_a_fault_strikes_what_it_names_as_often_as_it_says() -> None:
    faults = Faults(1, FaultRates())
    faults.declare(Fault(code="INTERNAL_SERVER_ERROR", item_id="one", page=2, times=2))

    struck = [
        faults.take_match(endpoint, item_id=item_id, institution_id=None, page=page)
        for endpoint, item_id, page in [
            ("/transactions/sync", "one", 1),
            ("/transactions/sync", "other", 2),
            ("/accounts/get", "one", None),
            ("/transactions/sync", "one", 2),
            ("/transactions/sync", "one", 2),
            ("/transactions/sync", "one", 2),
        ]
    ]

    assert [fault.code if fault else None for fault in struck] == [
        None,
        None,
        None,
        "INTERNAL_SERVER_ERROR",
        "INTERNAL_SERVER_ERROR",
        None,
    ]


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(ValueError, match="NO_SUCH"):
        Faults(1, FaultRates()).declare(Fault(code="NO_SUCH"))


def test_seeded_faults_are_the_same_every_time() -> None:
    rates = FaultRates(mutation=0.1, failure=0.1)

    drawn = [Faults(5, rates).draw_sync_fault(ordinal=3, request=n, page=2) for n in range(500)]

    assert drawn == [Faults(5, rates).draw_sync_fault(ordinal=3, request=n, page=2) for n in range(500)]
    assert 50 < sum(code is not None for code in drawn) < 150
    assert {"MUTATION", "RATE_LIMIT"} < set(drawn)
