"""Public events are a contract: each version reads what every other one wrote, for ever."""

import io
import json
from typing import Any

import fastavro
import pytest

from projections.events import public_events
from projections.events.public_events import TRANSACTION_EVENTS, common_fields, transaction_event
from projections.model.unit_of_work import NetEvent
from projections.publish import browser_messages, kafka_records
from projections.publish.kafka_records import ChangesetEvents
from schemas import events
from schemas.encoding import catalogue, codec
from schemas.topics import PUBLIC
from tests.support.paths import GOLDEN
from tests.support.projections_log import START_US, transaction

EXPECTED = json.loads((GOLDEN / "transaction_event.json").read_text("utf-8"))
OWN = bytes(range(16))
BEFORE = transaction("P", "40", pending=True)
AFTER = transaction("T", "48.5", pending_transaction_id="P")


def test_the_second_version_is_written_as_its_golden_bytes_say() -> None:
    common = common_fields(tenant="t", user_id="u", item_id="A", known_at=START_US, changeset=b"c" * 16)

    written = transaction_event(
        common,
        OWN,
        3,
        codec.encode(AFTER),
        changed=["pending", "user_fields.category"],
        previous=codec.encode(BEFORE),
        user_fields='{"category":"RENT"}',
        previous_user_fields='{"category":"GIFT"}',
    )

    assert written.hex() == EXPECTED["v2"]
    assert as_a_stranger_reads(catalogue.TRANSACTION_EVENT, written) == {
        "user_fields_json": '{"category":"RENT"}',
        "previous_user_fields_json": '{"category":"GIFT"}',
    }


@pytest.mark.parametrize(
    ("number", "golden", "category"),
    [(catalogue.TRANSACTION_EVENT_1, "v1", "FOOD_AND_DRINK"), (catalogue.TRANSACTION_EVENT, "v2", "RENT")],
)
def test_the_golden_bytes_of_each_version_are_read_and_published_for_ever(
    number: int, golden: str, category: str
) -> None:
    data = bytes.fromhex(EXPECTED[golden])
    block = codec.encode_events([(events.TRANSACTION_MODIFIED, number, data)])

    [event] = public_events.decode_block(block)
    said = public_events.read_transaction(event.data)
    [message] = browser_messages.build_messages([event], item_id="A", known_at=START_US)
    outbound = ChangesetEvents(0, 7, b"c" * 16, 1, "A", START_US, [event])
    published = {lane.topic.name: outgoing for lane, outgoing in kafka_records.build_records([outbound]).items()}

    assert (event.entity, said.version, said.transaction) == (OWN, 3, AFTER)
    assert public_events.changeset_id_of(NetEvent(*event)) == b"c" * 16
    assert json.loads(message.value)["data"]["category"] == category
    assert published["transactions"][0].value == b"\0" + number.to_bytes(4, "big") + data


def test_both_versions_are_known_wherever_a_transaction_is_told_from_the_rest() -> None:
    [topic] = [topic for topic in PUBLIC if topic.name == "transactions"]

    assert set(topic.schemas) == TRANSACTION_EVENTS


def as_a_stranger_reads(number: int, data: bytes) -> dict[str, Any]:
    event: Any = fastavro.schemaless_reader(io.BytesIO(data), catalogue.parsed_schema(number), None)
    return {name: value for name, value in event.items() if "user_fields" in name}
