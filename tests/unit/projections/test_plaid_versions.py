"""Answers of older and newer versions of Plaid's API reach old and new readers: none fails, nothing is lost.

Webhooks of unknown type or without an Item are in test_streams_intake and test_ingest_intake; bytes of older event
versions, kept for ever, in test_schemas_contract.
"""

import io
import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import fastavro
import pytest

from projections.publish import kafka_records
from runtime.plaid import models
from schemas.encoding import catalogue, compatibility
from schemas.topics import BALANCES, TRANSACTIONS, Topic
from streams.sync import changeset, pages
from tests.support.projections_story import Story
from tests.unit.sandbox.test_simulator_inprocess import Virtual

Json = dict[str, Any]
SINCE_THEN = (
    "counterparties",
    "merchant_entity_id",
    "personal_finance_category",
    "personal_finance_category_icon_url",
    "website",
    "logo_url",
    "original_description",
    "authorized_datetime",
)
"""Fields of a transaction that an older API did not have."""
OF_TOMORROW = {"sustainability": {"co2_kg": 0.30}, "installments": [1, 2]}


def older(answer: Json) -> Json:
    for transaction in answer["added"]:
        for name in SINCE_THEN:
            transaction.pop(name, None)
    for account in answer["accounts"]:
        account.pop("holder_category", None)
        account.pop("persistent_account_id", None)
    answer.pop("transactions_update_status")
    return answer


def newer(answer: Json) -> Json:
    for transaction in answer["added"]:
        transaction.update(OF_TOMORROW, payment_channel="telepathy", transaction_type="quantum")
        transaction["personal_finance_category"] = {
            "primary": "SPACE_TRAVEL",
            "detailed": "SPACE_TRAVEL_MOON",
            "confidence_level": "ABSOLUTE",
            "mood": "good",
        }
    for account in answer["accounts"]:
        account.update(type="hologram", subtype="3d", apy=0.50)
        account["balances"]["held"] = 3.30
    return {**answer, "transactions_update_status": "ALL_OF_IT", "advice": {"save": True}}


@pytest.fixture
def answer() -> Json:
    virtual = Virtual()
    item = virtual.world.create_item("ada", transactions=10)
    token = {"access_token": item.access_token, "options": {"personal_finance_category_version": "v2"}}
    answered = virtual.bank.answer("/transactions/sync", token)
    assert answered.status == 200
    loaded: Json = json.loads(answered.body)
    return loaded


@pytest.mark.parametrize("version", [older, newer])
def test_every_reader_gets_all_that_an_older_or_newer_api_said(version: Callable[[Json], Json], answer: Json) -> None:
    told = version(deepcopy(answer))

    story = brought(told)

    assert story.memory.reasons == {}
    assert len(told["added"]) == 10
    for reader in readers(*TRANSACTIONS.schemas):
        read = {
            one["transaction"]["transaction_id"]: one["transaction"] for one in published(story, TRANSACTIONS, reader)
        }
        assert set(read) == {one["transaction_id"] for one in told["added"]}
        for said in told["added"]:
            got, category = read[said["transaction_id"]], said.get("personal_finance_category") or {}
            assert got["payment_channel"] == said["payment_channel"]
            assert (got["category_primary"], got["category_confidence"]) == (
                category.get("primary"),
                category.get("confidence_level"),
            )
    for reader in readers(*BALANCES.schemas):
        accounts = [one["account"] for one in published(story, BALANCES, reader)]
        assert {(one["account_id"], one["type"], one["subtype"]) for one in accounts} == {
            (one["account_id"], one["type"], one["subtype"]) for one in told["accounts"]
        }


def test_fields_without_a_name_here_reach_every_reader(answer: Json) -> None:
    story = brought(newer(answer))

    for reader in readers(*TRANSACTIONS.schemas):
        for one in published(story, TRANSACTIONS, reader):
            extra = json.loads(one["transaction"]["extra_json"])
            assert OF_TOMORROW.items() <= extra.items()
            assert extra["personal_finance_category"] == {"mood": "good"}
    for one in published(story, BALANCES, catalogue.parsed_schema(catalogue.BALANCE_EVENT)):
        assert {"apy": 0.5, "balances": {"held": 3.3}}.items() <= json.loads(one["account"]["extra_json"]).items()


def test_a_field_that_comes_into_the_api_is_one_modification_that_names_it(answer: Json) -> None:
    story = brought(older(deepcopy(answer)))

    answer["modified"], answer["added"] = answer["added"], []
    kinds = said_by(story, answer)

    assert kinds.count("transaction.modified") == 10
    for reader in readers(*TRANSACTIONS.schemas):
        last = list(published(story, TRANSACTIONS, reader))[-1]
        assert "category_primary" in last["changed"]
        assert (last["version"], last["previous"]["category_primary"]) == (2, None)


def test_the_schema_of_tomorrow_may_take_such_a_field_in_and_reads_what_was_written_before() -> None:
    named = {catalogue.FILES[number]: catalogue.schema_text(number) for number in TRANSACTIONS.schemas}

    assert (
        compatibility.incompatible_pairs({**named, "tomorrow": json.dumps(tomorrow(catalogue.TRANSACTION_EVENT))}) == []
    )


def brought(answer: Json) -> Story:
    """An Item whose first sync gave this answer."""
    story = Story()
    said_by(story, answer)
    return story


def said_by(story: Story, answer: Json) -> list[str]:
    """Bring one answer the whole way of the pure code: read, folded, sealed, gated, folded into rows and events."""
    page = models.sync_page(json.dumps(answer).encode())
    update = pages.merge_pages([page], fresh=False)
    return story.sync(*changeset.encode_transactions(update.changes), *changeset.encode_balances(update.accounts))


def readers(*numbers: int) -> Iterator[Any]:
    """Schemas that strangers read with: each version, and one that is not written yet."""
    for number in numbers:
        yield catalogue.parsed_schema(number)
    yield fastavro.parse_schema(tomorrow(numbers[-1]))


def tomorrow(number: int) -> Json:
    """The next version of a public schema: a field more, in the event and in the record that it nests."""
    schema = deepcopy(catalogue.full_schema(number))
    field = {"name": "of_tomorrow", "type": ["null", "string"], "default": None}
    for entry in schema["fields"]:
        if isinstance(entry["type"], dict) and entry["type"]["type"] == "record":
            entry["type"]["fields"].append(field)
    schema["fields"].append(field)
    return schema


def published(story: Story, topic: Topic, reader: Any) -> Iterator[Json]:
    """The events of a topic as they are on the wire, read with a schema of the reader's own."""
    lanes = kafka_records.build_records(kafka_records.changesets_with_events(story.memory.folded))
    for lane, outgoing in lanes.items():
        for one in outgoing if lane.topic is topic else ():
            assert one.value is not None
            writer = catalogue.parsed_schema(int.from_bytes(one.value[1:5], "big"))
            event: Any = fastavro.schemaless_reader(io.BytesIO(one.value[5:]), writer, reader)
            yield event
