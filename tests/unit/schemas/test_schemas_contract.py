"""The contract for ever: committed schemas never change, versions read each other, old bytes say what they said."""

import hashlib
import io
import json
from typing import Any

import fastavro
import msgspec
import pytest

from schemas.contract import descriptions, subjects
from schemas.contract.examples import examples
from schemas.contract.reference import records_of
from schemas.encoding import catalogue, codec, compatibility, upcasting
from schemas.topics import PUBLIC
from tests.support.paths import GOLDEN, ROOT

RECORDS = json.loads((GOLDEN / "records.json").read_text("utf-8"))["records"]
EVENTS = json.loads((GOLDEN / "events.json").read_text("utf-8"))["events"]


def test_no_schema_that_was_committed_ever_changes() -> None:
    committed = json.loads((GOLDEN / "schemas.json").read_text("utf-8"))["files"]
    files = sorted((ROOT / "schemas" / "avro").glob("*.avsc"))

    assert {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files} == committed
    assert {file.stem for file in files} == set(catalogue.FILES.values())


def test_versions_of_a_schema_are_numbered_without_a_gap() -> None:
    for name, numbers in catalogue.families().items():
        wanted = [f"{name}.v{version}" for version in range(1, len(numbers) + 1)]
        assert [catalogue.FILES[number] for number in numbers] == wanted


def test_all_versions_of_every_schema_read_each_other() -> None:
    assert compatibility.incompatible_families() == []


def test_a_public_topic_holds_all_versions_of_one_schema() -> None:
    assert {topic.schemas for topic in PUBLIC} <= set(catalogue.families().values())


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"name": "removed_by", "type": "string"}, "removed_by"),
        ({"name": "account_id", "type": ["null", "long"], "default": None}, "union"),
    ],
)
def test_a_version_that_older_readers_or_writers_cannot_meet_is_told(changed: dict[str, Any], reason: str) -> None:
    old = catalogue.declared_schema(catalogue.REMOVAL)
    fields = [entry for entry in old["fields"] if entry["name"] != changed["name"]]
    new = {**old, "fields": [*fields, changed]}

    found = compatibility.incompatible_pairs(
        {"removal.v1": catalogue.schema_text(catalogue.REMOVAL), "removal.v2": json.dumps(new)}
    )

    assert found
    assert reason in " ".join(map(str, found))


def test_each_schema_has_golden_bytes() -> None:
    kept = {*RECORDS, "transaction_event.v1", *(catalogue.FILES[event["schema"]] for event in EVENTS.values())}

    assert kept == set(catalogue.FILES.values())


@pytest.mark.parametrize("name", RECORDS)
def test_the_golden_bytes_of_a_record_say_what_they_said_for_ever(name: str) -> None:
    number = subjects.schema_of_file(name)
    assert number is not None
    data = bytes.fromhex(RECORDS[name]["value"])

    read = fastavro.schemaless_reader(io.BytesIO(data), catalogue.parsed_schema(number), None)
    value, end = codec.decoder(number)(data, 0)

    assert read == _with_bytes(read, RECORDS[name]["says"])
    assert end == len(data)
    newest = upcasting.upcast(number, read)
    assert msgspec.to_builtins(value, builtin_types=(bytes,)) == newest


@pytest.mark.parametrize("kind", EVENTS)
def test_the_golden_bytes_of_an_event_are_its_example(kind: str) -> None:
    event, example = EVENTS[kind], examples()[kind]

    assert event["schema"] == example.schema
    assert dict(as_a_stranger_reads(event["schema"], bytes.fromhex(event["value"]))) == example.value


def test_every_type_of_event_has_its_example_and_every_field_its_meaning() -> None:
    kinds = {kind for topic in PUBLIC for kind in topic.event_types}
    fields = {
        (record["name"], entry["name"])
        for topic in PUBLIC
        for record in records_of(catalogue.full_schema(topic.schemas[-1]))
        for entry in record["fields"]
    }

    assert set(examples()) == set(descriptions.EVENTS) == kinds
    assert {(name, field) for name, known in descriptions.RECORDS.items() for field in known} == fields


@pytest.mark.parametrize("number", [number for number in catalogue.FILES if number != upcasting.newest(number)])
def test_every_older_version_has_its_step_to_the_next_one(number: int) -> None:
    [family] = [numbers for numbers in catalogue.families().values() if number in numbers]

    assert upcasting.STEPS[number].to == family[family.index(number) + 1]


def test_only_the_newest_versions_have_no_step() -> None:
    newest = {numbers[-1] for numbers in catalogue.families().values()}

    assert set(catalogue.FILES) - upcasting.STEPS.keys() == newest


def as_a_stranger_reads(number: int, data: bytes) -> Any:
    """An event as Avro has it, without this code's view of times."""
    plain = json.loads(catalogue.schema_text(number).replace(',"logicalType":"timestamp-micros"', ""))
    return fastavro.schemaless_reader(io.BytesIO(data), fastavro.parse_schema(plain), None)


def _with_bytes(read: Any, says: Any) -> Any:
    """What the golden file says, with bytes where the record has them."""
    if isinstance(read, bytes):
        return bytes.fromhex(says)
    if isinstance(read, dict):
        return {name: _with_bytes(value, says[name]) for name, value in read.items()}
    if isinstance(read, list):
        return [_with_bytes(value, said) for value, said in zip(read, says, strict=True)]
    return says
