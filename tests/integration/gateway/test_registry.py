"""The gateway as a schema registry: standard clients read it, and read the topics with it."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import fastavro
import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.schema_registry.error import SchemaRegistryError
from confluent_kafka.serialization import MessageField, SerializationContext

from schemas.contract.examples import Example, examples
from schemas.encoding import catalogue
from tests.support.gateway_world import Api, serving_api

TRANSACTIONS, BALANCES, ITEMS = (f"tartan.{name}-value" for name in ("transactions", "balances", "items"))

REFUSALS = [
    ("GET", "/subjects/none/versions", 404, 40401),
    ("GET", f"/subjects/{TRANSACTIONS}/versions/3", 404, 40402),
    ("GET", f"/subjects/{TRANSACTIONS}/versions/0", 422, 42202),
    ("GET", "/schemas/ids/999", 404, 40403),
    ("GET", f"/schemas/ids/{catalogue.HEAD}", 404, 40403),
    ("GET", "/config/none", 404, 40408),
    ("POST", f"/subjects/{TRANSACTIONS}", 422, 42201),
    ("DELETE", f"/subjects/{TRANSACTIONS}", 405, 405),
    ("PUT", "/config", 405, 405),
    ("GET", "/schemas/none/at/all", 404, 404),
]


@pytest.fixture
async def api(database: str) -> AsyncIterator[Api]:
    async with serving_api(database) as served:
        yield served


async def test_a_standard_client_finds_subjects_versions_schemas_and_levels(api: Api) -> None:
    def ask(client: SchemaRegistryClient) -> dict[str, Any]:
        latest = client.get_latest_version(TRANSACTIONS)
        assert latest.schema.schema_str is not None
        return {
            "subjects": client.get_subjects(),
            "versions": client.get_versions(TRANSACTIONS),
            "latest": (latest.version, latest.schema_id, json.loads(latest.schema.schema_str)),
            "first": client.get_version(TRANSACTIONS, 1).schema_id,
            "by_id": json.loads(client.get_schema(catalogue.BALANCE_EVENT).schema_str or ""),
            "found": client.lookup_schema(ITEMS, Schema(catalogue.schema_text(catalogue.ITEM_EVENT), "AVRO")).schema_id,
            "levels": (client.get_compatibility(), client.get_compatibility(ITEMS)),
        }

    assert await asked(api, ask) == {
        "subjects": [TRANSACTIONS, BALANCES, ITEMS],
        "versions": [1, 2],
        "latest": (2, catalogue.TRANSACTION_EVENT, catalogue.full_schema(catalogue.TRANSACTION_EVENT)),
        "first": catalogue.TRANSACTION_EVENT_1,
        "by_id": catalogue.full_schema(catalogue.BALANCE_EVENT),
        "found": catalogue.ITEM_EVENT,
        "levels": ("FULL_TRANSITIVE", "FULL_TRANSITIVE"),
    }


async def test_a_standard_serializer_that_registers_nothing_writes_what_is_published(api: Api) -> None:
    example = examples()["item.linked"]

    def ask(client: SchemaRegistryClient) -> Any:
        serializer = AvroSerializer(
            client, catalogue.schema_text(example.schema), conf={"auto.register.schemas": False}
        )
        return serializer(example.value, SerializationContext(example.topic, MessageField.VALUE))

    written = await asked(api, ask)

    assert written[:5] == b"\0" + example.schema.to_bytes(4, "big")
    assert fastavro.schemaless_reader(io.BytesIO(written[5:]), catalogue.parsed_schema(example.schema), None)


async def test_a_schema_is_found_however_its_names_are_written(api: Api) -> None:
    text = json.dumps(catalogue.full_schema(catalogue.BALANCE_EVENT), indent=2).replace('"tartan.Account"', '"Account"')

    assert await asked(api, lambda client: client.lookup_schema(BALANCES, Schema(text, "AVRO")).version) == 1


async def test_nothing_can_be_registered(api: Api) -> None:
    other = Schema('{"type":"record","name":"Other","fields":[]}', "AVRO")

    with pytest.raises(SchemaRegistryError) as refused:
        await asked(api, lambda client: client.register_schema(TRANSACTIONS, other))

    assert (refused.value.http_status_code, refused.value.error_code) == (405, 405)


async def test_a_refusal_has_the_form_that_clients_know(api: Api) -> None:
    for method, path, status, code in REFUSALS:
        async with api.session.request(method, api.address + path, json={}) as answer:
            said = await answer.json(content_type="application/vnd.schemaregistry.v1+json")

        assert (path, answer.status, said["error_code"]) == (path, status, code)
        assert said["message"]


async def test_where_a_registry_is_set_the_gateway_is_none(database: str) -> None:
    async with serving_api(database, schema_registry_url="http://127.0.0.1:9") as api:
        status, _ = await api.ask("GET", "/subjects", key=None)

    assert status == 404


async def test_a_standard_client_reads_each_example_of_the_page_as_the_page_says(api: Api) -> None:
    def read(client: SchemaRegistryClient) -> list[Any]:
        deserialize = AvroDeserializer(client)
        return [
            deserialize(_published(one), SerializationContext(one.topic, MessageField.VALUE))
            for one in examples().values()
        ]

    told = await asked(api, read)

    assert [_without_time(one) for one in told] == [_without_time(one.value) for one in examples().values()]


async def asked(api: Api, ask: Callable[[SchemaRegistryClient], Any]) -> Any:
    """What the client says, which waits for its answers and must not hold up the server in this loop."""

    def work() -> Any:
        with SchemaRegistryClient({"url": api.address}) as client:
            return ask(client)

    return await asyncio.to_thread(work)


def _published(example: Example) -> bytes:
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, catalogue.parsed_schema(example.schema), example.value)
    return b"\0" + example.schema.to_bytes(4, "big") + buffer.getvalue()


def _without_time(event: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != "known_at"}
