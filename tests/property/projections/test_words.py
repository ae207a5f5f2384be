"""The generated readers of payload against the plain codec, for any payload."""

import datetime
import io

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from projections.decode import transaction
from projections.events import public_events
from projections.events.field_diff import changed_fields
from projections.model import pg_copy
from schemas.encoding import catalogue, codec
from schemas.errors import Quarantine
from schemas.log.records import Transaction

TEXT = st.one_of(st.text(max_size=12), st.sampled_from(["x" * 63, "x" * 64, "é" * 40, "y" * 9_000]))
OPTIONAL = st.one_of(st.none(), TEXT)
DATE = st.dates().map(datetime.date.isoformat)
AMOUNT = st.one_of(
    st.sampled_from(["0", "-0.0000001", "9999", "10000", "9223372036854775807", "-12.34"]),
    st.decimals(-(10**9), 10**9, places=2).map(lambda value: format(value.normalize(), "f")),
)
TRANSACTIONS = st.builds(
    Transaction,
    transaction_id=TEXT,
    account_id=TEXT,
    amount=AMOUNT,
    iso_currency_code=st.sampled_from([None, "USD"]),
    unofficial_currency_code=st.sampled_from([None, "DOGE"]),
    pending=st.booleans(),
    pending_transaction_id=OPTIONAL,
    date=DATE,
    datetime=OPTIONAL,
    authorized_date=st.one_of(st.none(), DATE),
    authorized_datetime=OPTIONAL,
    name=OPTIONAL,
    merchant_name=OPTIONAL,
    merchant_entity_id=OPTIONAL,
    original_description=OPTIONAL,
    logo_url=OPTIONAL,
    website=OPTIONAL,
    category_primary=OPTIONAL,
    category_detailed=OPTIONAL,
    category_confidence=OPTIONAL,
    location_json=st.sampled_from([None, '{"a":1,"b":2}', '{"b": 2, "a": 1}', "{}"]),
    extra_json=OPTIONAL,
)


def fields(copied: bytes) -> list[bytes | None]:
    """The fields of a COPY row without its count."""
    found: list[bytes | None] = []
    at = 0
    while at < len(copied):
        size = int.from_bytes(copied[at : at + 4], "big", signed=True)
        at += 4
        found.append(None if size < 0 else copied[at : at + size])
        at += max(size, 0)
    return found


@given(TRANSACTIONS, st.binary(max_size=3), st.binary(max_size=3))
def test_what_is_read_is_what_was_written(said: Transaction, before: bytes, after: bytes) -> None:
    data = codec.encode(said)

    read = transaction.decoder(catalogue.TRANSACTION)(before + data + after, len(before), len(before) + len(data))

    assert read.data == data
    assert (read.transaction_id, read.pending_transaction_id) == (
        said.transaction_id,
        said.pending_transaction_id or None,
    )
    assert (read.account.decode(), read.currency.decode(), read.is_pending) == (
        said.account_id,
        said.currency,
        said.pending,
    )
    assert read.category.decode() == (said.category_primary or "UNCATEGORISED")
    columns = dict(zip(transaction.COLUMNS, fields(read.columns), strict=True))
    for name in (
        "datetime",
        "name",
        "merchant_name",
        "merchant_entity_id",
        "logo_url",
        "category_primary",
        "category_detailed",
        "category_confidence",
    ):
        value = getattr(said, name)
        assert columns[name] == (None if value is None else value.encode())
    assert pg_copy.read_date(read.date).isoformat() == said.date
    value, scale = (
        int.from_bytes(columns[name] or b"", "big", signed=True) for name in ("amount_value", "amount_scale")
    )
    whole, _, fraction = said.amount.partition(".")
    assert (value, scale) == (int(whole + fraction), len(fraction))


@given(TRANSACTIONS, TRANSACTIONS)
def test_the_changed_fields_are_those_that_differ(old: Transaction, new: Transaction) -> None:
    changed = changed_fields(codec.encode(old), 1, codec.encode(new), 1)

    plain = [name for name in Transaction.__struct_fields__ if getattr(old, name) != getattr(new, name)]
    same_json = {'{"a":1,"b":2}', '{"b": 2, "a": 1}'}
    if {old.location_json, new.location_json} == same_json:
        plain.remove("location_json")
    assert [name for name in plain if name != "extra_json"] == [name for name in changed if name != "extra_json"]


@given(TRANSACTIONS, st.integers(0, 400))
def test_a_cut_record_is_quarantine(said: Transaction, size: int) -> None:
    data = codec.encode(said)
    cut = data[: size % len(data)]
    for read in (lambda: transaction.decoder(1)(cut, 0, len(cut)), lambda: codec.splitter(1)(cut)):
        with pytest.raises(Quarantine):
            read()


@given(TRANSACTIONS, st.one_of(st.none(), TRANSACTIONS), st.integers(1, 10**6), st.integers(0, 2**50))
def test_an_event_cut_from_the_logs_bytes_is_what_fastavro_writes(
    said: Transaction, previous: Transaction | None, version: int, known_at: int
) -> None:
    own_id, changeset = b"o" * 16, b"c" * 16
    common = public_events.common_fields(
        tenant="té", user_id="u" * 70, item_id="A", known_at=known_at, changeset=changeset
    )
    changed = ["amount", "date"] if previous else []
    before = None if previous is None else codec.encode(previous)

    data = public_events.transaction_event(
        common, own_id, version, codec.encode(said), changed=changed, previous=before
    )

    schema = fastavro.parse_schema(catalogue.full_schema(catalogue.TRANSACTION_EVENT))
    event = fastavro.schemaless_reader(io.BytesIO(data), schema, None)
    assert event["transaction"] == {name: getattr(said, name) for name in Transaction.__struct_fields__}
    assert (event["id"], event["version"], event["changed"]) == (own_id.hex(), version, changed)
    assert (event["tenant"], event["user_id"], event["item_id"], event["changeset"]) == (
        "té",
        "u" * 70,
        "A",
        changeset.hex(),
    )
    assert (event["previous"] is None) == (previous is None)
    assert public_events.read_transaction(data).transaction == said
    if version == 1 and previous is None:
        assert public_events.first_transaction_event(common, own_id, codec.encode(said)) == data


@given(st.integers(0, 10**38 - 1))
def test_a_numeric_field_is_the_number(value: int) -> None:
    field = pg_copy.numeric(value)
    count, weight, sign, scale = (int.from_bytes(field[at : at + 2], "big") for at in (4, 6, 8, 10))
    digits = [int.from_bytes(field[at : at + 2], "big") for at in range(12, 12 + 2 * count, 2)]

    assert sum(digit * 10_000 ** (weight - place) for place, digit in enumerate(digits)) == value
    assert (sign, scale, len(field)) == (0, 0, 12 + 2 * count)
    assert not digits or (digits[0] and digits[-1])
