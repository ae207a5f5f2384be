"""The generated codec writes and reads what fastavro does, for every record of the log."""

import io
from typing import Any

import fastavro
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.encoding import catalogue, codec
from schemas.errors import Quarantine
from schemas.log import records

TEXT = st.text(st.characters(codec="utf-8"), max_size=300)
LONG_TEXT = st.integers(min_value=8_000, max_value=9_000).map(lambda size: "é" * size)

FLAT = [records.Transaction, records.Account, records.Removal, records.Item, records.Edit, records.Decision]


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    match kind:
        case "string":
            return TEXT | LONG_TEXT
        case "boolean":
            return st.booleans()
        case ["null", "string"]:
            return st.none() | TEXT
    raise AssertionError(kind)


def records_of(struct: type) -> st.SearchStrategy[Any]:
    fields = catalogue.declared_schema(codec.NUMBERS[struct])["fields"]
    return st.builds(struct, **{entry["name"]: values_of(entry["type"]) for entry in fields})


def by_fastavro(record: Any) -> bytes:
    buffer = io.BytesIO()
    plain = msgspec.structs.asdict(record)
    fastavro.schemaless_writer(buffer, catalogue.parsed_schema(codec.NUMBERS[type(record)]), plain)
    return buffer.getvalue()


@pytest.mark.parametrize("struct", FLAT)
@given(data=st.data())
def test_generated_code_writes_what_fastavro_writes_and_reads_it_back(struct: type, data: st.DataObject) -> None:
    record = data.draw(records_of(struct))

    written = codec.encode(record)

    assert written == by_fastavro(record)
    assert codec.decode(struct, written) == record


@pytest.mark.parametrize("struct", FLAT)
@given(data=st.data())
def test_bytes_that_were_cut_are_refused(struct: type, data: st.DataObject) -> None:
    written = codec.encode(data.draw(records_of(struct)))
    cut = data.draw(st.integers(min_value=0, max_value=len(written) - 1))

    with pytest.raises(Quarantine):
        codec.decode(struct, written[:cut])


@pytest.mark.parametrize("struct", FLAT)
def test_a_structs_fields_are_its_schemas_fields_in_order(struct: type) -> None:
    declared = [entry["name"] for entry in catalogue.declared_schema(codec.NUMBERS[struct])["fields"]]

    assert [field.name for field in msgspec.structs.fields(struct)] == declared


@given(st.lists(st.tuples(TEXT, st.integers(min_value=1, max_value=500), st.binary(max_size=200)), max_size=20))
def test_a_block_of_events_is_what_fastavro_writes_and_reads_back(events: list[tuple[str, int, bytes]]) -> None:
    block = codec.encode_events(events)

    buffer = io.BytesIO()
    plain = {"events": [{"type": kind, "schema": number, "data": data} for kind, number, data in events]}
    fastavro.schemaless_writer(buffer, catalogue.parsed_schema(catalogue.EVENTS), plain)
    assert block == buffer.getvalue()
    assert [(event.type, event.schema, event.data) for event in codec.decode_events(block)] == events


@given(st.binary(max_size=300))
def test_bytes_from_anywhere_are_read_or_refused_but_never_crash(data: bytes) -> None:
    for struct in codec.NUMBERS:
        try:
            codec.decode(struct, data)
        except Quarantine:
            continue
    try:
        list(codec.decode_events(data))
    except Quarantine:
        return


def test_an_event_of_an_unknown_schema_is_quarantined_by_number() -> None:
    [event] = codec.decode_events(codec.encode_events([("transaction.added", 99, b"")]))

    with pytest.raises(Quarantine, match="99"):
        codec.decode_event(event)


@pytest.mark.parametrize("number", catalogue.FILES)
def test_every_schema_of_the_catalogue_is_valid_avro(number: int) -> None:
    fastavro.parse_schema(catalogue.full_schema(number))
