"""Upcasters say what Avro's own resolution from the older schema to the newer one says."""

import io
from typing import Any

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.encoding import catalogue, upcasting

SIMPLE: dict[str, st.SearchStrategy[Any]] = {
    "string": st.text(st.characters(codec="utf-8"), max_size=20),
    "boolean": st.booleans(),
    "int": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(0, 2**50),
    "null": st.none(),
}


def values_of(schema: Any, named: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Plain values of an Avro schema."""
    match schema:
        case list():
            return st.one_of([values_of(branch, named) for branch in schema])
        case {"type": "record", "name": name, "fields": fields}:
            named[name] = st.fixed_dictionaries({one["name"]: values_of(one["type"], named) for one in fields})
            return named[name]  # type: ignore[no-any-return]
        case {"type": "array", "items": items}:
            return st.lists(values_of(items, named), max_size=3)
        case {"type": kind}:
            return values_of(kind, named)
        case str():
            return SIMPLE[schema] if schema in SIMPLE else named[schema.rpartition(".")[2]]
    raise AssertionError(schema)


@pytest.mark.parametrize("number", upcasting.STEPS)
@given(data=st.data())
def test_an_upcaster_says_what_avro_resolves(number: int, data: st.DataObject) -> None:
    plain = data.draw(values_of(catalogue.full_schema(number), {}))
    older, newest = catalogue.parsed_schema(number), catalogue.parsed_schema(upcasting.newest(number))
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, older, plain)

    resolved = fastavro.schemaless_reader(io.BytesIO(buffer.getvalue()), older, newest)
    read = fastavro.schemaless_reader(io.BytesIO(buffer.getvalue()), older, None)

    assert upcasting.upcast(number, read) == resolved
