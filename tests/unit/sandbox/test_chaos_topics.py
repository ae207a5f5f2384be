"""Chaos finds events and webhooks that are lost or duplicate."""

import base64
import json
from types import SimpleNamespace
from typing import Any

from sandbox.observe.published_events import Delivery, accepted, deduplicate, event_of, lost_webhooks
from schemas.encoding import codec
from schemas.log.records import Webhook


def published(position: str, kind: str = "transaction.added") -> Any:
    return SimpleNamespace(headers=(("tartan-position", position.encode()), ("ce_type", kind.encode())))


def logged(item_id: str, signed_at_s: int, code: str = "SYNC_UPDATES_AVAILABLE") -> Any:
    claims = base64.urlsafe_b64encode(json.dumps({"iat": signed_at_s}).encode()).rstrip(b"=").decode()
    body = json.dumps({"item_id": item_id, "webhook_code": code}).encode()
    return SimpleNamespace(value=codec.encode(Webhook(0, body, b"\0" * 32, f"head.{claims}.signature", "{}")))


def sent(item_id: str, sent_at_s: int) -> Delivery:
    return Delivery(item_id, "SYNC_UPDATES_AVAILABLE", sent_at_s)


def test_what_a_crashed_publisher_repeats_is_dropped() -> None:
    records = [published(position) for position in ("7.0", "7.1", "8.0", "7.1", "8.0", "9.0")]

    assert [event[:2] for event in deduplicate(map(event_of, records))] == [(7, 0), (7, 1), (8, 0), (9, 0)]


def test_positions_are_compared_as_numbers() -> None:
    assert len(deduplicate(map(event_of, [published("9.9"), published("9.10"), published("10.0")]))) == 3


def test_a_webhook_that_was_answered_with_200_and_is_not_in_the_log_is_lost() -> None:
    assert lost_webhooks([sent("A", 100), sent("B", 100)], [logged("A", 100)]) == [sent("B", 100)]


def test_two_webhooks_of_one_second_need_two_records() -> None:
    twice = [sent("A", 100), sent("A", 100)]

    assert lost_webhooks(twice, [logged("A", 100)]) == [sent("A", 100)]
    assert lost_webhooks(twice, [logged("A", 100), logged("A", 101)]) == []


def test_a_record_of_an_attempt_without_an_answer_stands_for_no_other() -> None:
    records = [logged("A", 90), logged("A", 200)]

    assert lost_webhooks([sent("A", 100)], records) == [sent("A", 100)]
    assert lost_webhooks([sent("A", 200)], records) == []


def test_only_deliveries_with_200_count_as_accepted() -> None:
    deliveries = [
        {"item_id": "A", "code": "X", "sent_at": 100.7, "status": 200},
        {"item_id": "B", "code": "X", "sent_at": 100.7, "status": 429},
        {"item_id": "C", "code": "X", "sent_at": 100.7, "status": 0},
    ]

    assert accepted(deliveries) == [Delivery("A", "X", 100)]
