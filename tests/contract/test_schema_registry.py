"""The client of a schema registry: what it registers, what it finds, and what each refusal means."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import encode_basic_auth
from confluent_kafka.schema_registry import SchemaRegistryClient

from runtime.kafka import registration
from runtime.kafka.registry_client import Registry
from runtime.settings import Settings
from schemas.contract import subjects
from schemas.encoding import catalogue
from schemas.errors import Halt, Retry
from tests.support.command_line import last_json, tartan
from tests.support.confluent_registry import ConfluentRegistry, running

TRANSACTIONS, ITEMS = "tartan.transactions-value", "tartan.items-value"


@pytest.fixture
async def registry() -> AsyncIterator[ConfluentRegistry]:
    async with running() as served:
        yield served


def of(registry: ConfluentRegistry, **more: Any) -> Settings:
    return Settings(schema_registry_url=registry.url, **more)


async def test_all_public_schemas_are_registered_once_and_under_the_level_of_the_contract(
    registry: ConfluentRegistry,
) -> None:
    first = await registration.register(of(registry))
    writes = list(registry.writes)
    again = await registration.register(of(registry))

    assert [one.is_new for one in first] == [True] * 4
    assert [one.is_new for one in again] == [False] * 4
    assert [(one.schema, one.id) for one in again] == [(one.schema, one.id) for one in first]
    assert registry.writes == writes
    assert set(registry.levels.values()) == {"FULL_TRANSITIVE"}
    assert writes[0].startswith("/config/")
    assert await registration.differences(of(registry)) == []


async def test_a_standard_client_finds_what_was_registered(registry: ConfluentRegistry) -> None:
    outcomes = await registration.register(of(registry))

    def ask() -> list[Any]:
        with SchemaRegistryClient({"url": registry.url}) as client:
            return [json.loads(client.get_schema(one.id).schema_str or "") for one in outcomes]

    assert await asyncio.to_thread(ask) == [catalogue.full_schema(one.number) for one in outcomes]


async def test_a_schema_that_readers_of_an_earlier_one_cannot_read_is_refused_with_the_reason(
    registry: ConfluentRegistry,
) -> None:
    await registration.register(of(registry))
    other = {
        "type": "record",
        "name": "TransactionEvent",
        "namespace": "tartan",
        "fields": [{"name": "x", "type": "int"}],
    }

    async with Registry(of(registry)) as client:
        with pytest.raises(Halt, match="incompatible with an earlier schema"):
            await client.register(TRANSACTIONS, json.dumps(other))


async def test_a_check_tells_what_is_missing_strange_and_too_weak(registry: ConfluentRegistry) -> None:
    strange = json.dumps({"type": "record", "name": "Other", "fields": [{"name": "x", "type": "int"}]})
    registry.subjects[TRANSACTIONS], registry.ids[strange] = [strange], 7
    registry.levels[TRANSACTIONS] = "BACKWARD"

    told = "\n".join(await registration.differences(of(registry)))

    assert "tartan.transactions-value: compatibility is BACKWARD, not FULL_TRANSITIVE" in told
    assert "tartan.items-value: compatibility is not set" in told
    assert "transaction_event.v2 is not registered" in told
    assert "version 1 (id 7) is no schema of this code" in told
    assert "transaction_event.v2 cannot read version 1 of the registry" in told


async def test_a_registry_may_write_a_schema_its_own_way_and_hold_what_is_none(registry: ConfluentRegistry) -> None:
    await registration.register(of(registry))
    held = registry.subjects[TRANSACTIONS]
    short = [text.replace('"name":"Transaction","namespace":"tartan"', '"name":"Transaction"') for text in held]
    registry.subjects[TRANSACTIONS] = [text.replace('"tartan.Transaction"', '"Transaction"') for text in short]
    registry.subjects[ITEMS].append('{"type":"object"}')
    registry.ids.update(
        {text: place for place, text in enumerate([*registry.subjects[TRANSACTIONS], '{"type":"object"}'])}
    )

    assert registry.subjects[TRANSACTIONS] != held
    assert await registration.differences(of(registry)) == [
        "tartan.items-value: version 2 (id 2) is no schema of this code"
    ]


async def test_user_and_password_are_sent_and_their_refusal_is_told_without_them(registry: ConfluentRegistry) -> None:
    registry.authorization = encode_basic_auth("ada", "sésame", encoding="utf-8")

    assert await registration.register(of(registry, schema_registry_username="ada", schema_registry_password="sésame"))
    with pytest.raises(Halt, match="refuses the user") as refused:
        await registration.register(of(registry, schema_registry_username="ada", schema_registry_password="wrong"))
    assert "wrong" not in str(refused.value)


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_registry_in_trouble_is_asked_again(registry: ConfluentRegistry, status: int) -> None:
    registry.fails_with = status

    with pytest.raises(Retry, match=str(status)):
        await registration.register(of(registry))


async def test_a_registry_that_is_silent_or_away_is_late(registry: ConfluentRegistry) -> None:
    registry.is_silent = True

    async with Registry(of(registry), answer_s=0.05) as client:
        with pytest.raises(Retry, match="does not answer"):
            await client.find(TRANSACTIONS, "{}")
    with pytest.raises(Retry, match="does not answer"):
        await registration.register(Settings(schema_registry_url="http://127.0.0.1:9"))


async def test_what_is_no_registry_is_told(registry: ConfluentRegistry) -> None:
    with pytest.raises(Halt, match="404"):
        await registration.register(Settings(schema_registry_url=f"{registry.url}/not/here"))
    with pytest.raises(Halt, match="TARTAN_SCHEMA_REGISTRY_URL"):
        await registration.register(Settings())


@pytest.mark.parametrize("url", ["registry:8081", "ftp://registry", "http://ada:secret@registry"])
def test_an_address_that_is_none_or_holds_a_secret_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="schema_registry_url"):
        Settings(schema_registry_url=url)


def test_versions_of_a_subject_are_those_of_its_topic_in_order() -> None:
    found = [(one.version, one.schema) for one in subjects.versions("x.") if one.subject == "x.transactions-value"]

    assert found == [(1, catalogue.TRANSACTION_EVENT_1), (2, catalogue.TRANSACTION_EVENT)]


async def test_the_commands_register_and_then_find_nothing_amiss(registry: ConfluentRegistry) -> None:
    def command(name: str) -> tuple[int, Any]:
        result = tartan("schemas", name, "--json", TARTAN_SCHEMA_REGISTRY_URL=registry.url)
        return result.exit_code, last_json(result)

    code, before = await asyncio.to_thread(command, "check")
    registered = await asyncio.to_thread(command, "register")
    again = await asyncio.to_thread(command, "register")
    after = await asyncio.to_thread(command, "check")

    assert (code, len(before["registry_differs"])) == (1, 7)
    assert (registered[0], registered[1]["registered"], again[1]["registered"]) == (0, 4, 0)
    assert (after[0], after[1]["registry_differs"], after[1]["incompatible"]) == (0, [], [])
